"""The experiment that a serve command stands for: its YAML, what is taken for granted, what is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.paths import is_file
from cbsim.base.registry import did_you_mean
from cbsim.config.document import read_document
from cbsim.config.engine_flags import DERIVED, FLAGS, Flag, mapping
from cbsim.config.yaml_text import dump_yaml, parse_yaml
from cbsim.cost.costfile import shipped_profile
from cbsim.schedulers.vllm import VllmConfig
from cbsim.specs import huggingface
from cbsim.specs.model_names import find_model
from cbsim.studies.experiment import Experiment
from cbsim.studies.serve_command import ServeCommand, Source

GPU = "h200"
"""Where neither the user nor the text names one."""
_GPUS = r"gb300|gb200|b300|b200|h200|h100|h20|a100|a10g|a30|l40s|l4|t4|mi300x|mi325x|mi355x|rtx ?[345]090"
NEWEST = (0, 33)
_TIERS = {
    "LMCacheConnectorV1": "tier_read",
    "LMCacheMPConnector": "tier_read",
    "OffloadingConnector": "tier_loaded",
}
"""Connectors to a tier below the GPU; others go to other replicas."""
_GRANTED = {
    "SGLang": (
        "scheduler: continuous, prompts before decodes, is the rule nearest to SGLang's: prompts longer than "
        "max_tokens_per_step, which SGLang splits, are refused, and no prefix is found again"
    ),
    "TensorRT-LLM": "scheduler: vllm is the rule nearest to TensorRT-LLM's",
}


class ServedExperiment:
    """What a serve command becomes. Raises `ConfigError` with a line for each flag that can't be read."""

    def __init__(
        self,
        command: ServeCommand,
        source: Source,
        gpu: str | None = None,
        model: str | None = None,
        release: str | None = None,
    ) -> None:
        self._command, self._flags = command, FLAGS[command.engine]
        self._problems: list[str] = []
        self._settings: dict[str, dict[str, Any]] = {
            key: {} for key in ("model", "scheduler", "kv_cache", "cost_model", "parallel", "replicas")
        }
        self._comments: dict[str, str] = {}
        """What each dotted key came from."""
        self.granted: list[str] = []
        """What the command does not say: key, value, and why that one."""
        self.left_out: dict[str, str] = {}
        """Flags without a counterpart, each with the reason."""
        self._traffic = source.traffic
        self._derived: dict[str, Any] = {}
        """Values of the flags that depend on others, by the name in place of a key."""
        self._gpu = gpu or self._gpu_in(source.text)
        self._release = self._release_of(release, source)
        self._read_flags([*_of_file(command, self.left_out), *command.flags])
        self._name_model(model)
        if self._problems:
            raise ConfigError(*self._problems)
        self._schedule()
        self._share()
        if source.num_replicas is not None and source.num_replicas > 1:
            count = source.num_replicas * self._settings["replicas"].get("count", 1)
            self._put("replicas.count", count, f"replicas: {source.num_replicas} of the YAML")
        self.experiment = self._checked()
        if self._follow_up(self.experiment):
            self.experiment = self._checked()
        if isinstance(self.experiment.scheduler, VllmConfig) and self.experiment.scheduler.entry:
            self._tell_defaults(self.experiment, self.experiment.scheduler)
        self._tell_the_rest()

    def yaml_text(self) -> str:
        """The YAML, a comment behind each line that came from a flag, the two lists below it."""
        text = f"# {_one_line(self._command.text)}\n" if len(self._command.text) < 400 else ""
        for section, value in self._mapping().items():
            if not isinstance(value, dict) or section == "workload":
                text += f"{_line(section, value)}{self._comment(section)}\n"
                continue
            text += f"{section}:\n"
            for key, inner in value.items():
                text += f"  {_line(key, inner)}{self._comment(f'{section}.{key}')}\n"
        left_out = [f"{flag}: {reason}" for flag, reason in self.left_out.items()]
        for title, lines in (("Taken for granted", self.granted), ("Without a counterpart", left_out)):
            text += (
                "".join([f"\n# {title}:\n", *(f"# - {_one_line(line)}\n" for line in lines)]) if lines else ""
            )
        return text

    def _comment(self, key: str) -> str:
        return f"  # {_one_line(self._comments[key])}" if key in self._comments else ""

    def _mapping(self) -> dict[str, Any]:
        sections = {key: value for key, value in self._settings.items() if value}
        model = sections.pop("model")
        return {
            "name": re.sub(r"^\W+|[^\w.+=,-]", "", str(model["name"]).rpartition("/")[2]) or "served",
            "model": model["name"] if len(model) == 1 else model,
            "gpu": self._gpu,
            "workload": self._traffic.workload
            if self._traffic
            else {"type": "trace", "path": "azure-like.csv"},
            **sections,
        }

    def _put(self, key: str, value: Any, comment: str = "") -> None:
        """Set a dotted key."""
        section, _, inner = key.partition(".")
        self._settings[section][inner] = value
        if comment:
            self._comments[key] = comment

    def _has(self, key: str) -> bool:
        section, _, inner = key.partition(".")
        return inner in self._settings[section]

    def _gpu_in(self, text: str) -> str:
        """The GPU that the text names, such as a node selector."""
        found = re.search(rf"(?<![a-z0-9])(?:\d+ ?x ?)?({_GPUS})(?![a-z0-9])(.{{0,16}})", text.lower())
        if not found:
            self.granted.append(
                f"gpu: {GPU}, as nothing names one; --gpu NAME takes another (cbsim list gpus)"
            )
            return GPU
        name, rest = found[1].replace(" ", ""), found[2]
        if name == "a100":
            name = "a100-40g" if "40g" in rest else "a100-80g"
        name += next(
            (f"-{kind}" for kind in ("pcie", "nvl") if name == "h100" and re.search(rf"\b{kind}\b", rest)), ""
        )
        self._comments["gpu"] = f"'{found[0].strip()[:24]}' in the text"
        return name

    def _release_of(self, given: str | None, source: Source) -> tuple[int, int]:
        if given is None:
            found = source.release
        elif match := re.fullmatch(r"v?(\d+)\.(\d+)(\.\w+)*", given):
            found = (int(match[1]), int(match[2]))
        else:
            raise ConfigError(f"--release: got '{given}'; expected vLLM's, as 0.11 or v0.11.0")
        if self._command.engine == "vLLM" and found is None:
            self.granted.append(
                "scheduler.version: 0.33, as no image or requirement names one; --release takes another"
            )
        return found or NEWEST

    def _read_flags(self, flags: list[tuple[str, str | None]]) -> None:
        is_vllm = self._command.engine == "vLLM"
        for name, value in flags:
            shown = f"-{name}" if self._flags.get(name) and len(name) < 4 and is_vllm else f"--{name}"
            flag, is_off = self._flags.get(name), False
            if flag is None and name.startswith("no-"):
                flag, is_off = self._flags.get(name[3:]), True
            if flag is None and (whole := self._flags.get(name.partition(".")[0])) is not None:
                part = name.partition(".")[2]
                if whole.read is mapping and value is not None:
                    self._derived.setdefault(whole.key, {})[part.replace("-", "_")] = parse_yaml(
                        value, f"--{name}"
                    ).value
                    self._comments[whole.key] = f"--{name.partition('.')[0]}"
                    continue
                flag = whole
            if flag is None:
                near = did_you_mean(name, self._flags)
                self.left_out[shown] = f"not known here{near if 'did you mean' in near else ''}"
            elif flag.reason:
                self.left_out[shown] = flag.reason
            else:
                self._take(shown, flag, value, is_off=is_off)

    def _take(self, shown: str, flag: Flag, value: str | None, *, is_off: bool) -> None:
        """Read the value of a flag that has a counterpart."""
        if value is None and not flag.is_switch:
            self._problems.append(f"{shown}: has no value")
            return
        try:
            found = flag.read(value if value is not None else "true")
        except ValueError as error:
            self._problems.append(f"{shown}: got '{value}'; expected {error}")
            return
        if is_off:
            found = not found
        comment = shown if flag.is_switch or isinstance(found, dict) else f"{shown} {value}"
        if found is None:
            return
        if flag.key.startswith(DERIVED):
            self._comments[flag.key] = comment
            self._derived[flag.key] = found
        else:
            self._put(flag.key, found, comment)

    def _name_model(self, given: str | None) -> None:
        """The shipped model of a name, or the `config.json` of a folder."""
        name = given or self._derived.get("@model")
        if not name or name.startswith("$"):
            self._problems.append(
                f"model: {'got ' + name if name else 'missing'}; expected a name, or --model NAME"
            )
            return
        of_command = self._settings["model"]
        path = huggingface.find(Path(name))
        if path is not None:
            shown = str(Path(name))
            inner = {**huggingface.read(path), **of_command} if of_command else {"name": shown}
            self._settings["model"] = inner
            self._comments["model"] = f"--model {name}"
            return
        try:
            known = find_model(name)
        except ConfigError as error:
            asked = "--model NAME takes a shipped one (cbsim list models), or the folder of its config.json"
            self._problems += [f"model: {problem}; {asked}" for problem in error.problems]
            return
        self._settings["model"] = {"name": known.name, **of_command}
        self._comments["model"] = self._comments["model.name"] = f"--model {name}"
        if known.weight_dtype is not None and not self._has("model.weight_dtype"):
            self._put("model.weight_dtype", known.weight_dtype, f"by the name {name.rpartition('/')[2]}")
        if not known.is_exact:
            self.granted.append(
                f"model: {name} has the figures of the shipped {known.name}; where its longest context or "
                "else differs, --model FOLDER takes its config.json"
            )

    def _schedule(self) -> None:
        """The scheduler, and its settings that come from several flags."""
        given, engine = self._settings["scheduler"], self._command.engine
        base: dict[str, Any] = {"type": "vllm"}
        if engine == "vLLM":
            version = "0.15" if self._release < (0, 17) else "0.20" if self._release < (0, 27) else "0.33"
            base |= {"version": version, "entry": "server"}
            named = ".".join(map(str, self._release))
            if named != version:
                self.granted.append(f"scheduler.version: {version}, of those followed the nearest to {named}")
            if self._release < (0, 14):  # the release that made it the default, by its notes
                base["async_scheduling"] = False
                self.granted.append(f"scheduler.async_scheduling: false, as vLLM {named} has it")
            if (0, 21) <= self._release < (0, 27) and not self._has("kv_cache.cuda_graphs"):
                self._put("kv_cache.cuda_graphs", True, "as vLLM from 0.21 on")
        else:
            self.granted.append(_GRANTED[engine])
            is_mixed = self._derived.get("@mixed")
            seqs, tokens = 2048, 8192
            if engine == "SGLang":
                base = {"type": "preemptive"} if is_mixed else {"type": "continuous", "prefill_first": True}
                if is_mixed:
                    self._put("kv_cache.prefix_caching", self._derived.get("@radix", True), "RadixAttention")
                    self._comments["scheduler.type"] = "--enable-mixed-chunk"
                    self.granted.remove(_GRANTED[engine])
                elif "@radix" in self._derived:
                    self.left_out["--disable-radix-cache"] = "no prefix is found again as it is"
                if not self._has("kv_cache.gpu_memory_utilization"):
                    self._put("kv_cache.gpu_memory_utilization", 0.84)
                    self.granted.append(
                        "kv_cache.gpu_memory_utilization: 0.84, SGLang's rule on 80 GB; its own log tells"
                    )
                self._put("kv_cache.activation_gib", 0.0, "SGLang's share is of weights and KV alone")
            else:
                base["enable_chunked_prefill"] = False
                self._settings["kv_cache"].setdefault("prefix_caching", True)
            base |= {"async_scheduling": True, "max_num_seqs": seqs, "max_tokens_per_step": tokens}
            for key in ("max_num_seqs", "max_tokens_per_step"):
                if key not in given:
                    self.granted.append(f"scheduler.{key}: {base[key]}, the default of {engine}")
        self._settings["scheduler"] = {**base, **given}
        for name, read in (("@speculative", self._drafts), ("@transfer", self._transfers)):
            if name in self._derived:
                read(dict(self._derived[name]), self._comments[name])
        if self._derived.get("@offloading"):
            self._put("scheduler.connector", {"kind": "tier_loaded"}, self._comments["@offloading"])

    def _drafts(self, given: dict[str, Any], flag: str) -> None:
        """VLLM's speculative decoding."""
        drafter = str(given.get("model") or "")
        method = str(given.get("method") or ("ngram" if "ngram" in drafter else "draft_model"))
        kinds = {
            "eagle": r"eagle3?|(\w+_)?mtp|dflash|medusa",
            "ngram": r"ngram(_gpu)?|suffix|\[ngram\]",
            "draft_model": "draft_model",
        }
        kind = next((kind for kind, pattern in kinds.items() if re.fullmatch(pattern, method)), None)
        if kind is None:
            self.left_out[f"{flag} method"] = f"'{method}' is not modelled: TPOT would be shorter"
            return
        found = {"method": kind, "num_tokens": given.get("num_speculative_tokens", 3)}
        self._put("scheduler.speculative", found, flag)
        self.granted.append(
            "scheduler.speculative.acceptance: 0.7 of the drafts, which traffic and drafter decide"
        )
        for part in given.keys() - {"method", "num_speculative_tokens", "model"}:
            self.left_out[f"{flag} {part}"] = (
                "how drafts are made, or for whom: draft_share and acceptance tell here"
            )

    def _transfers(self, given: dict[str, Any], flag: str) -> None:
        """VLLM's KV connector."""
        kind = str(given.get("kv_connector"))
        role = str(given.get("kv_role", "kv_both")).removeprefix("kv_")
        found = {"kind": _TIERS.get(kind, "remote"), "role": role}
        if "kv_load_failure_policy" in given:
            found["load_failure"] = str(given["kv_load_failure_policy"])
        self._put("scheduler.connector", found, f"{flag}, {kind}")
        self.granted.append("scheduler.connector: which prompts find KV elsewhere is the workload's to say")

    def _share(self) -> None:
        """Experts and data parallelism, which depend on each other and on the model."""
        given, derived = self._settings["parallel"], self._derived
        has_experts = self._model_has_experts()
        ranks = given.get("data", 1)
        if derived.get("@dp_attention"):
            # All GPUs of `tensor` are dealt out: attention by request, experts as `expert` says.
            of_tensor = given.get("tensor", 1)
            ranks = given.get("data", of_tensor if self._command.engine == "TensorRT-LLM" else 1) or 1
            self._put("parallel.data", ranks, self._comments["@dp_attention"])
            self._put("parallel.tensor", max(1, of_tensor // ranks), "GPUs of a rank of attention")
        elif ranks > 1 and (
            self._command.engine == "SGLang" or not has_experts or given.get("pipeline", 1) > 1
        ):
            del given["data"]
            self._put("replicas.count", ranks, f"{self._comments['parallel.data']}: ranks that share nothing")
        if derived.get("@experts") and has_experts:
            num_gpus = given.get("tensor", 1) * given.get("data", 1)
            self._put("parallel.expert", num_gpus, f"{self._comments['@experts']}: of all GPUs")
        elif derived.get("@experts"):
            self.left_out[self._comments["@experts"]] = "the model has no experts"

    def _model_has_experts(self) -> bool:
        return Experiment.from_mapping(
            {"model": self._mapping()["model"], "workload": {"type": "trace", "path": "azure-like.csv"},
             "scheduler": "vllm", "kv_cache": {"num_blocks": 1}}
        ).model.experts is not None  # fmt: skip

    def _checked(self) -> Experiment:
        """The experiment. Raises `ConfigError` where keys have flags, with these."""
        try:
            return Experiment.from_mapping(self._mapping())
        except ConfigError as error:
            raise ConfigError(*map(self._with_flag, error.problems)) from None

    def _with_flag(self, problem: str) -> str:
        problem = problem.removeprefix("config: ")
        flag = self._comments.get(problem.partition(": ")[0])
        return f"{problem} (from {flag})" if flag else problem

    def _follow_up(self, experiment: Experiment) -> bool:
        """Settings that follow from GPU, model or defaults; whether there are any."""
        derived, comments = self._derived, self._comments
        before = dump_yaml(self._settings)
        model, gpu, sharing = experiment.model, experiment.gpu, experiment.sharing
        scheduler: Any = experiment.scheduler
        if "@blocks" in derived:
            self._put(
                "kv_cache.num_blocks",
                derived["@blocks"] - 1,
                f"{comments['@blocks']}, of which one is kept empty",
            )
        if "@kv_tokens" in derived:
            num_blocks = derived["@kv_tokens"] // experiment.kv_cache.block_size
            self._put("kv_cache.num_blocks", num_blocks, comments["@kv_tokens"])
        if "@kv_bytes" in derived:
            num_blocks = derived["@kv_bytes"] // experiment.kv_cache.plan(model, sharing).block_bytes - 1
            self._put("kv_cache.num_blocks", num_blocks, comments["@kv_bytes"])
        if self._command.engine == "TensorRT-LLM":
            part = derived.get("@free_share", 0.9)
            kept = model.weight_bytes_of_gpu(sharing) + scheduler.largest_step(model).reserved_bytes(
                model, sharing
            )
            used = round((kept + part * max(0, gpu.memory_bytes - kept)) / gpu.memory_bytes, 3)
            self._put(
                "kv_cache.gpu_memory_utilization", used, f"{part:g} of what weights and activations leave"
            )
        if derived.get("@performance"):
            for key in ("max_num_seqs", "max_tokens_per_step"):
                if not self._has(f"scheduler.{key}"):
                    doubled = f"{comments['@performance']}: twice the default"
                    self._put(f"scheduler.{key}", 2 * getattr(scheduler, key), doubled)
        if self._command.engine == "vLLM":
            tokens = self._settings["scheduler"].get("max_tokens_per_step", scheduler.max_tokens_per_step)
            if not scheduler.enable_chunked_prefill and tokens < model.max_model_len:
                if not self._has("scheduler.max_tokens_per_step"):
                    whole = "whole prompts, up to the longest"
                    self._put("scheduler.max_tokens_per_step", model.max_model_len, whole)
            elif not self._has("scheduler.max_num_seqs") and tokens < scheduler.max_num_seqs:
                self._put("scheduler.max_num_seqs", tokens, "no more than the tokens of a step")
        return dump_yaml(self._settings) != before

    def _tell_defaults(self, experiment: Experiment, scheduler: VllmConfig) -> None:
        """Tell vLLM's own defaults, where no flag says otherwise."""
        for section, defaults in zip(
            ("scheduler", "kv_cache"), scheduler.engine_defaults(experiment.gpu), strict=True
        ):
            for key, value in defaults.items():
                if not self._has(f"{section}.{key}"):
                    shown = str(value).lower()
                    told = f"default of vllm serve {scheduler.version} on {experiment.gpu.name}"
                    self.granted.append(f"{section}.{key}: {shown}, {told}")

    def _tell_the_rest(self) -> None:
        """What no command says: the traffic, and how long a step takes."""
        if self._traffic is None:
            told = "workload: the bundled azure-like.csv, 2,000 requests; put your traffic in its place"
            self.granted.append(told)
        else:
            self._comments["workload"] = self._traffic.told
            self.granted += self._traffic.granted
        experiment = self.experiment
        profile = shipped_profile(experiment.model, experiment.gpu, experiment.sharing)
        if profile is None:
            self.granted.append("cost_model: roofline, an estimate")
        else:
            self._put("cost_model.type", "profile")
            self._put("cost_model.profile", profile)
            if not experiment.scheduler.async_scheduling:
                self._put("cost_model.host", "sync", "without asynchronous scheduling the GPU waits for it")
            self.granted.append(f"cost_model: {profile}, kernels measured for this model, GPU and sharing")
        if self._command.environment:
            names = ", ".join(self._command.environment)
            self.left_out[f"environment ({names})"] = "variables are not read"


def _one_line(text: str) -> str:
    """Text without line breaks, for a comment."""
    return " ".join(text.split())


def _line(key: str, value: Any) -> str:
    """One line of YAML."""
    return dump_yaml({key: value}, default_flow_style=True, width=10**6).strip()[1:-1]


def _of_file(command: ServeCommand, left_out: dict[str, str]) -> Iterator[tuple[str, str | None]]:
    """The flags in the YAML that `--config` names, if it is at hand; nested keys become `name.part`."""
    for name, value in command.flags:
        if name not in ("config", "extra-llm-api-options"):
            continue
        path = Path(value or "")
        if not is_file(path):
            left_out[f"--{name}"] = f"{value}: no such file here, so that none of its settings is told"
            continue
        yield from _flat(read_document(path).data)


def _flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, str | None]]:
    for key, value in settings.items():
        name = f"{above}{key}".replace("_", "-")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)
