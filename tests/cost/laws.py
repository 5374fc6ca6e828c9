"""A step form of known coefficients, near those of a data-centre GPU, and shapes to try it on."""

from hypothesis import strategies as st

from cbsim.cost.attention import ChunkLengths, DecodeAttention, FusedAttention, PrefillAttention, Spill
from cbsim.cost.cost_model import StepShape
from cbsim.cost.form import DenseTable, LogitsForm, StepForm

NUM_LAYERS = 32


def dense_law(num_tokens: int) -> float:
    """One layer: 110 us of weights, then 0.65 us a token, with a soft knee."""
    return (110e-6**4 + (0.65e-6 * num_tokens) ** 4) ** 0.25 + 0.02e-6 * num_tokens


def make_form(*, fused: bool) -> StepForm:
    tokens = sorted({*range(1, 9), *(round(10 * 1.2**power) for power in range(41)), 16_384})
    return StepForm(
        num_layers=NUM_LAYERS,
        dense=DenseTable(
            tokens=tuple(tokens),
            seconds=tuple(dense_law(count) for count in tokens),
            tail_s_per_token=0.67e-6,
        ),
        logits=LogitsForm(
            fixed_s=280e-6,
            per_row_s=0.4e-6,
            per_row_beyond_128_s=0.5e-6,
            per_row_beyond_256_s=0.8e-6,
        ),
        decode=DecodeAttention(
            launch_s=5e-6,
            floor_s=4e-6,
            per_decode_s=0.18e-6,
            per_token_s=0.9e-9,
            start_per_token_s=0.3e-9,
            start_tokens=20_000.0,
            softness=1.2,
            floor_softness=0.8,
        ),
        prefill=PrefillAttention(
            launch_s=6e-6,
            floor_s=6e-6,
            per_pair_s=2.4e-11,
            per_token_s=5e-9,
            per_chunk_s=0.1e-6,
            beyond_per_token_s=0.0,
            beyond_tokens=300.0,
            per_longest_token_s=20e-9,
            softness=0.5,
            floor_softness=2.0,
            tile=64,
        ),
        fused=FusedAttention(
            launch_s=9e-6,
            per_pair_s=2.6e-11,
            per_token_s=8e-9,
            per_decode_s=0.4e-6,
            per_context_token_s=1.3e-9,
            beyond_per_context_token_s=0.8e-9,
            beyond_context_tokens=120_000.0,
            per_longest_token_s=22e-9,
            per_longest_decode_token_s=4e-9,
            softness=1.0,
        )
        if fused
        else None,
    )


SPILL = Spill(per_token_s=45e-9, cached_tokens=3000.0, softness=0.5)
LENGTHS = ChunkLengths(tokens=(16, 128, 512, 1024, 8192), more_s=(0.2e-6, -0.3e-6, 4e-6, 1e-6, -3e-6))


def measured_chunks(form: StepForm) -> StepForm:
    """The form with chunks whose data spill from the cache, some lengths of which take more than others."""
    chunks = PrefillAttention(**form.prefill.model_dump() | {"lengths": LENGTHS, "spill": SPILL})
    return form.model_copy(update={"prefill": chunks})


def decodes(contexts: list[int]) -> dict[str, int]:
    """The fields of a `StepShape` that say its decodes."""
    return {
        "num_decodes": len(contexts),
        "decode_context": sum(contexts),
        "max_decode_context": max(contexts, default=0),
    }


def shapes() -> st.SearchStrategy[StepShape]:
    """Steps of all kinds, some beyond the sizes of `make_form`'s tables."""
    chunks = st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 60_000)), max_size=4)
    contexts = st.lists(st.integers(1, 60_000), max_size=30)
    return st.builds(
        lambda chunks, finishing, contexts: StepShape(
            tuple(chunks), min(finishing, len(chunks)), **decodes(contexts)
        ),
        chunks,
        st.integers(0, 4),
        contexts,
    ).filter(lambda shape: shape.num_tokens > 0)
