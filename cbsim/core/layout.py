"""The records that rules and the step loop work on: the same field names compiled and interpreted.

Integers have 64 bits in records that a replica has few of, 32 bits in those of requests and slices, to save
memory. Indices name rows; `NOBODY` stands for none. Instants are seconds, NaN for one that has not come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.records import object_class
from cbsim.cost.step_columns import CHUNK, SHAPE

__all__ = ["CHUNK", "SHAPE"]

NOBODY = -1

UNFINISHED, WAITING, RUNNING, PREEMPTED, FINISHED, REJECTED, FAILED, HANDED_OVER = range(8)
"""States of a request; `UNFINISHED` only in results. From `FINISHED` on its visit here has ended;
`HANDED_OVER`: another replica goes on with it."""

NOBODY_WAITS, TURN, SLOT, KV_BLOCKS = range(4)
"""What keeps the head of the queue waiting: nothing (nobody waits); its turn (no budget left, no batch that
starts, a step that preempted); `max_num_seqs` requests running; too few free KV blocks."""

(
    ARRIVED,
    ADMITTED,
    RESUMED,
    PREEMPTED_NOW,
    EMITTED,
    FINISHED_NOW,
    REJECTED_NOW,
    LOAD_STARTED,
    LOADED,
    READ,
    SENT,
    FAILED_NOW,
    HANDED_OVER_NOW,
) = range(13)
"""Codes of events."""

ENTRY, DECODE_STAGE = range(2)
"""Stages of a request's way: it comes to a replica that computes its prompt, and perhaps all of it; it is
handed over to one that decodes."""

NO_TRANSFER, LOADING, READY, SENDING, RELEASING, READING = range(6)
"""What becomes of a request's KV cache between this replica and elsewhere (`EXTRA.transfer`)."""

NO_CONNECTOR, REMOTE, TIER_ALONE = range(3)
"""Where KV computed before comes from: nowhere, another replica (vLLM's P/D connectors) and tiers below the
GPU if there are any, or such a tier alone."""

CONSUMER, PRODUCER, BOTH = range(3)
"""Role of a replica with a connector: takes KV in, hands it over, or both."""

FAIL, RECOMPUTE_LOST = range(2)
"""What becomes of a request whose KV did not come: it ends in error, or computes what is missing."""

FITS, TOO_MANY_BLOCKS, PROMPT_TOO_LONG, LONGER_THAN_SLOT = range(4)
"""Why a replica can never serve a request: what `rejects` returns."""

NO_FAULT, SCHEDULED_TOO_MUCH, NO_FREE_BLOCKS, BAD_DURATION, ADMITTED_TOO_MANY = range(5)
"""What a rule or a cost model did that it must not."""

FCFS, PRIORITY, SJF, EDF, FAIR = range(5)
"""Orders of the waiting queue."""

LAST_ADMITTED, LOWEST_PRIORITY, MOST_BLOCKS, LEAST_PROGRESS, LEAST_URGENT = range(5)
"""Whom to preempt."""

RECOMPUTE, SWAP, CHEAPER = range(3)
"""What becomes of a preempted request's KV."""

(
    ROUND_ROBIN,
    RANDOM,
    LEAST_OUTSTANDING,
    LEAST_KV,
    PREFIX_AFFINITY,
    POWER_OF_TWO,
    SESSION_AFFINITY,
    KV_AWARE,
    LEAST_EXPECTED_TTFT,
    LEAST_SCORE,
) = range(10)
"""Routers; `LEAST_SCORE` is a third party's, by its rule `score`."""

UP, STARTING, DRAINING, STOPPED, DOWN = range(5)
"""States of a replica: it takes requests; it will; it only ends those it has; nobody pays for it; it has
failed."""

STARTED, MADE_READY, DRAINED, STOPPED_NOW, FAILED_REPLICA, REPAIRED, SLOWED, RESTORED = range(8)
"""Codes of changes of a replica."""

NO_AUTOSCALER, BY_QUEUE, BY_OUTSTANDING, BY_KV, BY_TTFT, BY_SCHEDULE, BY_RULE = range(7)
"""How many replicas a pool should have: a figure over its target, a schedule, a third party's `desired`."""

REPLICA_LOST, KV_LOST, PREEMPTED_THERE, TIMED_OUT, QUEUES_FULL = range(101, 106)
"""Why a visit ended before its time, beside what `rejects` returns: its replica failed; so did the one, or
the link, from which its KV should have come; the replica that decoded gave it back; its client had waited
long enough; no replica would take it."""

UNWATCHED, REQUESTS_WATCHED, STEPS_WATCHED = range(3)
"""Who watches a run: nobody, somebody who hears of requests, somebody who hears of steps too."""

WRITTEN, READ_IN_STEP = -1, -2
"""Transfers for which no visit waits: blocks that a replica writes to a tier, and those that it reads from
one within a step (`TRANSFER.request`)."""

AT_ONCE = -1
"""In `is_asked`: the scheduler is asked at this instant, before anything else happens anywhere."""


def _record(**fields: str) -> np.dtype[Any]:
    """A record: for each kind of number (`f8`, `i8`, `i4`) the names of its fields, with spaces between."""
    return np.dtype([(name, kind) for kind, names in fields.items() for name in names.split()])


REQUEST = _record(
    f8="""
    arrival_s deadline_s job_length think_s first_scheduled_at_s first_token_at_s last_token_at_s
    max_itl_s waiting_since_s waited_s
    """,
    i4="""
    index replica state num_prompt_tokens num_output_tokens priority user_number affinity route
    first_link end_link source previous next_visit attempt num_reroutes num_computed_tokens
    num_generated_tokens num_in_flight_tokens num_launched_tokens num_drafts prefill_until
    num_preemptions preempted_in_call resumes_at_call place_in_line last_call
    num_cached_tokens num_lost_tokens num_blocks num_junction_tokens num_swapped_blocks slot
    first_decode last_decode
    """,
    i1="stage samples was_passed_over rejection",
)
"""A visit of a request to a replica. Fixed: lengths in tokens, `deadline_s` after the arrival (infinite
without), `job_length` (what `sjf` orders by), `user_number` and `affinity` (numbers for equal names), `route`
(the replica drawn for it), `first_link` to `end_link` (its rows of `Replica.segments`), `think_s` (what its
client thinks after it), `source` (its row of `World.planned`, where there are any), `stage` (`ENTRY` or
`DECODE_STAGE`), `previous` and `next_visit` (the rows of the request's visits before and after this one, or
`NOBODY`), `attempt` (how often its client has sent it before), `num_reroutes` (how often it was lost and went
back to the router). Progress: `num_computed_tokens` counts tokens whose KV is computed or scheduled to be,
steps in flight included, `num_generated_tokens` those whose result was taken, `num_in_flight_tokens` output
tokens that steps under way may emit if all their drafts are accepted (asynchronous scheduling only),
`num_launched_tokens` tokens that steps under way compute, `last_call` the call that last gave it any (0: none
did), `num_drafts` drafts ready to be verified, `prefill_until` the tokens to compute before it decodes (its
prompt; after a preemption its answer so far too), `samples` whether its last slice sampled, `was_passed_over`
whether the queue passed it over since it last ran, `resumes_at_call` the call before which a pipeline passes
it over, `place_in_line` where it stands under `fcfs` (0 for newcomers, the last one preempted first),
`num_junction_tokens` how far a full-attention group knew its prefix where a sliding one did not,
`num_lost_tokens` what the last preemption threw away, `waited_s` the time waited before `waiting_since_s`,
`slot` its row of `Replica.tables`, `first_decode` to `last_decode` the numbers of the steps of its latest
unbroken run of decodes."""

PLANNED = np.dtype(
    [
        (name, REQUEST[name])
        for name in (
            *("arrival_s", "deadline_s", "job_length", "num_prompt_tokens", "num_output_tokens", "priority"),
            *("user_number", "affinity", "first_link", "end_link"),
        )
    ]
)
"""What is fixed of a request that has yet to be sent: fields of `REQUEST`."""

SLICE = _record(
    i4="""
    request num_tokens num_computed_tokens is_prefill emits num_drafts num_accepted num_emitted is_padded
    """,
)
"""A request's share of a step; `num_computed_tokens` before the step. `emits`: whether it samples, so that a
token comes out, with `num_drafts` drafts to verify, none of which can be right if `is_padded`. Once the step
has ended: `num_accepted` drafts were right, `num_emitted` tokens came out."""

EXTRA = _record(
    f8="load_s send_s transfer_end_s came_s",
    i4="""
    is_remote_prefill is_remote_decode num_tier_tokens first_bad_block transfer found_in_call is_known
    num_transfers num_local_tokens num_external_tokens num_below_tokens num_to_come first_accepted
    end_accepted first_proposed end_proposed num_verifications num_proposals awaits_link partner
    """,
)
"""What only requests with speculation or a connector have, by row of the request. `load_s`, `send_s`: seconds
that KV takes to come and to go; `num_tier_tokens` leading tokens that a tier holds; `first_bad_block` the
block from which the first transfer fails (`NOBODY`: none does); `transfer` its state, which ends at
`transfer_end_s` and was found in call `found_in_call`; `is_known` whether what was loaded has been made known
to lookups; `num_transfers` begun so far, `num_external_tokens` that the last one brings behind
`num_local_tokens` that were cached here, the first `num_below_tokens` of them from tiers of the replica.
`num_to_come` of its parts, one from each tier and one over the link of the cluster, are still missing, the
last one that has come was there at `came_s`; `awaits_link`: the one over the link has not begun.
`partner` is the replica that is to decode it, where that is chosen at its arrival, else `NOBODY`.
`first_accepted` to `end_accepted` and `first_proposed` to `end_proposed` are rows of `Replica.acceptance`,
counted through again and again by `num_verifications` and `num_proposals`."""

GROUP = _record(i8="window block_size most_blocks tail interval is_first_of_kind")
"""A group of layers that share blocks: `window` tokens that its attention reaches back (0: all),
`most_blocks` that the test of a whole prompt counts, `tail` blocks that a lookup needs (`ceil((window - 1) /
block_size)`), `interval` blocks after which it keeps that many (0: never)."""
SHARE = _record(i4="num_places num_behind num_published num_stored publishes_at")
"""What a request holds of a group: blocks in all, of which the first `num_behind` have been given back as
they lie behind the window, and how many of the first were made known to lookups, and given to tiers. In the
row of the first group `publishes_at` is the number of tokens from which lookups could know a further one."""

NODE = _record(f8="key", i4="child next last is_in")
"""A request's place in a heap: see `cbsim.core.heap`."""

STEP = _record(
    f8="now start_s duration_s end_s transfer_s",
    i8="""
    place number budget num_slices num_decisions first_decision num_preempted waiting_for num_running
    num_waiting kv_blocks_used num_kv_tokens num_prefill_tokens num_prefill_seqs num_decode_seqs
    num_attention_pairs num_context_tokens num_window_pairs num_window_keys num_logits
    max_decode_context num_shared_tokens num_padding_tokens call num_found num_started num_drafts
    skips_drafts visits_prefill num_served
    """,
)
"""A step under way: `place` is its row of `Replica.slices`, `now` when it was decided, `call` the number of
the call that did. It has no slices if that call scheduled nothing, and then takes no time. Queue lengths and
blocks are those right after the decision. `num_found` transfers were found to have ended, `num_started`
began. `first_decision` is the row of the log's events with the first of its decisions. With `skips_drafts` no
request can use further drafts. Before anybody was admitted `num_served` requests were scheduled, one with
prompt tokens to compute if `visits_prefill`."""

OWN = _record(
    f8="""
    next_s last_end_s first_stage_until_s busy_until_s unspent_transfer_s slowdown back_at_s fails_at_s
    restored_at_s
    """,
    i8="""
    replica pool state num_failures num_owed_tokens num_promised seen_outstanding seen_blocks
    seen_owed_tokens first_rank num_tiers num_links num_in_flight num_blocks block_size hit_size
    num_groups has_groups num_free num_cached_free has_identities prefix_caching looks_ahead drops_last_hit
    unknown_first first_free_slot num_nodes num_running num_waiting num_holding num_transfers
    num_sending num_news num_begun newest_step_call num_passed_over num_preemptions
    steps_since_prefill holds_prefill is_backed_up head due_head aged_head num_active_users last_user
    num_batch num_padded_tokens num_kv_tokens num_steps num_calls num_under_way first_under_way
    is_asked turn last_call num_outstanding num_tokens_recomputed num_tokens_queried num_tokens_hit
    num_padding_tokens num_swapped_blocks num_moved_out num_turned_away fault fault_request
    fault_tokens fault_limit fault_budget num_shared_blocks
    """,
)
"""What a replica counts. `next_s` is when something happens next, infinite for never: the scheduler is asked
(`is_asked`), or else the first step under way ends; `last_call` is that of the step that ended last. The
steps decided so far keep the first stage of a pipeline until `first_stage_until_s`, the last one until
`busy_until_s`. `num_links` transfers over its link are under way. Its steps last `slowdown` times as long. It
changes by itself at `back_at_s` (it takes requests again), `fails_at_s` and `restored_at_s` (no longer slow),
infinite for never. `num_owed_tokens` are the prompts that it has not answered, `num_promised` requests will
come to it to be decoded; what begins with `seen` is what a router knows that looks now and then. With
`has_groups` layers stand in several groups or have windows, so that a request may hold more or fewer blocks
than its tokens fill. `first_rank` is the first of the replicas that work in step with it, itself where none
do. `num_tiers` are below its GPUs. `fault` is what a rule did that it must not, with the row of the request,
the tokens or blocks asked for, how many there could have been, and the step's budget."""

CONFIG = _record(
    f8="""
    aging_s batch_timeout_s block_bytes swap_bytes_per_s swap_latency_s draft_s prefill_token_s
    """,
    i8="""
    max_num_seqs max_tokens_per_step chunk_size max_output_tokens max_model_len num_slots
    blocks_per_slot prefill_first enable_chunked_prefill reserve_full_isl num_watermark_blocks version
    policy victim preemption preempt_on_arrival num_swap_blocks with_batches seed async_scheduling
    num_stages window num_ranks num_speculative_tokens num_lookahead_tokens num_extra_slots proposes
    connector role load_failure_policy max_num_active_seqs adaptive_chunk_size
    prefill_schedule_interval gives_back_preempted stores_through reads_in_step
    """,
)
"""Settings of the built-in schedulers, as numbers. A plug-in's own settings are further fields."""

STEP_ROW = _record(
    f8="scheduled_at_s start_s duration_s transfer_s gap_s",
    i8="""
    num_attention_pairs num_context_tokens num_kv_tokens num_window_pairs num_window_keys num_shared_tokens
    """,
    i4="""
    replica step num_prefill_tokens num_decode_tokens num_prefill_seqs num_decode_seqs num_running
    num_waiting num_preempted num_finished kv_blocks_used num_logits waiting_for max_decode_context
    num_usual_gaps num_joint_tokens num_drafts num_accepted skips_drafts
    """,
)
"""A step that has ended. `gap_s` is the time since the end of the step before (since 0 for the first): the
gap between the two tokens of each of the `num_usual_gaps` requests that got one in both. `num_joint_tokens`
came out together with another one of their request."""
EVENT_ROW = _record(f8="time_s", i4="replica step request event num_tokens")
PREFILL_ROW = _record(i4="replica step request num_tokens num_computed_tokens emits is_prefill")
DECODES_ROW = _record(i4="replica request first_step last_step")
"""An unbroken range of steps in each of which a request decoded one token; both ends included."""
BATCH_ROW = _record(
    f8="start_s",
    i4="""
    replica step position request num_tokens num_computed_tokens kind num_drafts num_accepted
    is_padded
    """,
)
CHANGE_ROW = _record(f8="time_s", i4="replica change")
"""A replica has changed its state."""
LENGTHS = _record(
    i8="""
    steps events prefills decodes gaps batches changes
    max_steps max_events max_prefills max_decodes max_gaps max_batches max_changes
    """,
)
"""Rows in use of each table of a `Log`, and how many at most where it has room for what one more thing that
happens in a replica may write down."""

USER = _record(i8="num_served head active")
"""For `fair`, by number of user: `num_served`, its tokens served; `head`, the root of the heap of its waiting
requests. `active` is a column of its own: its first `num_active_users` rows name the users with requests
waiting."""

ROWS_OF_LOAD = 3
"""Events of a load of KV: it begins, it ends, its request fails."""
BLOCK = _record(i8="key", i4="next_free last_free num_holders next_copy last_copy num_seen")
"""A KV block: what it holds (`NOBODY` for nothing known), its place in the ring of free blocks and in the
list of those with equal content, how many requests hold it, and room for counting shares."""
KEY = _record(i8="key", i4="first last")
"""A content (see `pool.key_at`), with the first and the last of the blocks that hold it."""
SEGMENT = _record(i8="start node")
"""A segment of a request's tokens: its first position, and a number for the chain of segments up to it."""

CLIENTS = _record(
    f8="now",
    i8="""
    num_sent num_made num_started is_closed is_planned size order turn watched replica place has_ranks
    """,
)
"""How many requests have been sent, how many records of requests are made (`NOBODY`: all), and the instant of
what happens; how many clients think (`size`), of a closed loop or between two turns. `is_planned`: whether
requests wait for the answers to others, so that nobody knows beforehand when they arrive; `num_started` of
those that wait for none have been sent. Where the run is `watched`: in which `replica` something happened
last, and the `place` of its step in `Replica.under_way`. `has_ranks`: whether replicas work in step
anywhere."""
CLIENT = _record(f8="due_s", i8="order row visit")
"""A client that thinks: when it sends, which of those that send at one instant it is, and the row of
`World.planned` that it sends (`NOBODY`: the next that waits for no answer). Or a request that is handed over:
the row of the `visit` that has ended, else `NOBODY`."""
FOLLOWING = _record(f8="delay_s", i4="next")
"""A planned request: sent `delay_s` seconds after the answer that it waits for; the row of the request that
waits for its own answer, or `NOBODY`."""

TIER = _record(
    f8="block_bytes bytes_per_s latency_s",
    i8="num_blocks is_shared num_links num_to_read num_tokens_loaded",
)
"""A tier of KV below the GPU, of one replica or of all. It takes in and gives `bytes_per_s` at most, shared
by its `num_links` transfers under way, and a load takes `latency_s` more; it holds `num_blocks`. The step
just decided is to read `num_to_read` blocks; `num_tokens_loaded` were brought so far."""

ROUTER = _record(
    f8="weight refresh_s seen_at_s",
    i8="kind next reads_state first end max_queue holds chooses_pairs first_held num_held",
)
"""A router, of the replicas from number `first` up to `end`. `weight` is that of prefix hits; it looks at the
replicas when what it has `seen_at_s` is `refresh_s` old. Replicas take a request if less than `max_queue`
wait there (`NOBODY`: any number do); if none does, it waits for one if the router `holds`, else it is
refused. `num_held` wait so, the first of them at place `first_held` of the ring `World.held`.
`chooses_pairs`: the replica that decodes is chosen at the arrival, too."""

AGENDA = _record(
    f8="next_s first_token_timeout_s timeout_s backoff_s mtbf_s repair_s link_back_at_s",
    i8="""
    is_open num_faults max_retries max_reroutes first_open first_token_row last_token_row failing
    """,
)
"""What changes in a cluster by itself: at `next_s`, seconds, infinite for never. Clients wait so long for the
first and the last token, and send again up to `max_retries` times, `backoff_s` later and twice as late each
time; `first_token_row` and `last_token_row` are the first requests for whom that time may not be over. Up to
`max_reroutes` times a request that was lost goes back to the router. `num_faults` of `World.faults` have
happened; without those that are listed a replica fails `mtbf_s` after it was last well, on average, for
`repair_s`. Before row `first_open` all requests have ended. `failing` is the replica (`NOBODY`: none) whose
requests are leaving. `is_open`: whether anything of this can happen."""
FAULT_ROW = _record(f8="at_s repair_s slowdown", i8="replica")
"""A fault: of a replica, which from then on is down, or slower by a factor above 1; of the link: `NOBODY`."""
SCALER = _record(
    f8="next_s interval_s target delay_s stabilization_s low_since_s now kv_share ttft_s",
    i8="""
    kind first end least most peak first_plan end_plan num_up num_starting num_waiting num_outstanding
    """,
)
"""How many replicas the pool of numbers `first` to `end` has: decided each `interval_s`, from `least` to
`most`, so that a figure is at its `target`. A new one takes requests `delay_s` later. Since `low_since_s`
(infinite: not so) fewer would have done, at most `peak`; after `stabilization_s` of that they are let go. At
`now`: `num_up` take requests, `num_starting` will; `num_waiting` requests wait and `num_outstanding` have not
ended; `kv_share` is the mean share of KV blocks in use, `ttft_s` what a newcomer would wait for its first
token, on average over the replicas."""
PLAN = _record(f8="at_s", i8="count")
"""A scheduled number of replicas, from an instant on."""

LINK = _record(
    f8="bytes_per_s latency_s bytes_per_token now next_s",
    i8="num_transfers num_layers is_layered is_down",
)
"""What connects replicas: each sends and takes in `bytes_per_s` at most, shared by its transfers under way.
`now` is when these, and those of tiers, were last looked at, `next_s` when the next of them ends.
`is_layered`: the KV of a layer is sent while the next one is computed. `is_down`: nothing is sent."""
TRANSFER = _record(f8="left_bytes bytes_per_s end_s", i8="request replica sender receiver")
"""A transfer under way: bytes to go at `LINK.now`, how fast, when that will be done; the visit that waits for
it (`WRITTEN`, `READ_IN_STEP`: none), the replica that asked for it, and its ends: numbers of replicas, or
behind all of those the rows of tiers."""


class Log(NamedTuple):
    """What was written down since Python last took it: rows of all replicas in the order they happened."""

    lengths: Any
    steps: Any
    events: Any
    prefills: Any
    decodes: Any
    gaps: Any
    """Gaps between tokens, seconds, that are not the time between the ends of two consecutive steps."""
    batches: Any
    """Empty unless `with_batches`."""
    changes: Any


class Replica(NamedTuple):
    """One replica: `self` of every rule. Few arrays: compiled, a call passes each of them."""

    requests: Any
    config: Any
    own: Any
    running: Any
    """Indices of the running requests in order of admission."""
    order: Any
    """Scratch for rules: a list of requests, by their rows."""
    candidates: Any
    """Scratch: the requests that may be preempted; after a step's end, the requests that it finished."""
    nodes: Any
    """A `NODE` for each request: the queue. With aging twice as many more, see `cbsim.core.waiting_queue`."""
    users: Any
    under_way: Any
    """A ring of `STEP`."""
    slices: Any
    """By place in that ring."""
    shape: Any
    chunks: Any
    prefill_s: Any
    """For `cheaper`: seconds of a step that computes a prompt of n tokens and nothing else, at place n."""
    blocks: Any
    """A `BLOCK` for each KV block where their contents are known, the head of the free queue behind them."""
    keys: Any
    """A hash table of `KEY`s with open addressing."""
    segments: Any
    """Rows `first_link` to `end_link` of each request; shared by all replicas."""
    tables: Any
    """Blocks of a request in order of position, a row for each group from row `slot * num_groups` on,
    `NOBODY` where one was given back; in the first place of a free slot, the next free one; in the last slot,
    the blocks that the last lookup found."""
    groups: Any
    shares: Any
    """A `SHARE` for each row of `tables`."""
    extras: Any
    """An `EXTRA` for each request, where any are needed."""
    transfers: Any
    """Requests whose KV comes or goes, in the order in which it began to."""
    acceptance: Any
    """The chance of each draft of a step to be accepted if those before it were, by position; then the lists
    of accepted and of proposed drafts that requests bring along."""
    stores: Any
    """The rows of `tiers` of its tiers, from the nearest on."""
    loads: Any
    """By visit and by tier of its replica: blocks that it waits for, and that have not begun to come."""
    tiers: Any
    """A `TIER` for each of all replicas."""
    tier_blocks: Any
    """By tier, a `BLOCK` for each of its blocks, in a ring by when they were used; its head behind them. Then
    heads of the rings of those that are being written, of one replica each: `num_holders` blocks, of which
    the first `num_seen` are under way. What is being written has a holder."""
    tier_keys: Any
    """By tier, a hash table of `KEY`s."""
    log: Log


class World(NamedTuple):
    """All replicas: the arrays of `Replica` with a row for each of them, and what they share."""

    requests: Any
    config: Any
    costs: Any
    """What the cost model's formula takes, by pool of equal replicas."""
    own: Any
    running: Any
    order: Any
    candidates: Any
    nodes: Any
    users: Any
    under_way: Any
    slices: Any
    shape: Any
    chunks: Any
    prefill_s: Any
    blocks: Any
    keys: Any
    segments: Any
    tables: Any
    groups: Any
    shares: Any
    extras: Any
    transfers: Any
    acceptance: Any
    stores: Any
    loads: Any
    tiers: Any
    tier_blocks: Any
    tier_keys: Any
    log: Log
    routers: Any
    """A `ROUTER` for each stage."""
    homes: Any
    """For `prefix_affinity`, by stage: number `affinity` -> the replica its requests go to, or `NOBODY`."""
    clients: Any
    client_heap: Any
    """A heap of the `CLIENT`s that think, by when they send, then by when they began to."""
    planned: Any
    """Where requests wait for answers: a `PLANNED` for all of them, as the workload has them. Each becomes a
    row of `requests` when it is sent, so that rows are in order of arrival."""
    planned_extras: Any
    """An `EXTRA` for each of the workload's requests; none where they bring nothing along."""
    turns: Any
    """A `FOLLOWING` for each of those."""
    starts: Any
    """The rows of those that wait for no answer, in their order."""
    link: Any
    on_link: Any
    """The `TRANSFER`s under way."""
    agenda: Any
    faults: Any
    """`FAULT_ROW`s in the order of time."""
    draws: Any
    """Exponentially distributed numbers of mean 1: times between failures are taken from them."""
    scalers: Any
    plans: Any
    held: Any
    """By stage, a ring of the requests that wait at the router."""
    first_in_order: Any
    """A tree over the replicas, by its places from 1 on: in which of those below something happens first."""
    replicas: Sequence[Replica] = ()
    """Each of them, of the same arrays or lists: see `with_replicas`."""


def with_replicas(world: World) -> World:
    """The world with its replicas made anew of its arrays or lists."""
    return world._replace(replicas=[replica_of(world, number) for number in range(len(world.own))])


def replica_of(world: World, number: int) -> Replica:
    """One replica of a world."""
    own = world.own[number]
    is_array = isinstance(own, np.void)
    pool = int(own["pool"] if is_array else own.pool)
    fields = {name: getattr(world, name) for name in Replica._fields}
    kind: Any = Replica if is_array else object_class(Replica)
    made: Replica = kind(
        **{
            name: field[number] if name in PER_REPLICA else field[pool] if name in PER_POOL else field
            for name, field in fields.items()
        }
    )
    return made


PER_REPLICA = (
    "config",
    "groups",
    "own",
    "shape",
    "chunks",
    "running",
    "order",
    "candidates",
    "users",
    "under_way",
    "slices",
    "blocks",
    "keys",
    "tables",
    "shares",
    "transfers",
    "stores",
)
"""Fields of `World` with a row for each replica."""
PER_POOL = ("prefill_s",)
"""Fields with a row for each pool."""
