from cbsim.studies.labels import label_values, point_name, short_keys


def test_labels_are_short_where_they_are_distinct():
    static, small, large = {"type": "static"}, {"type": "vllm", "n": 1}, {"type": "vllm", "n": 2}
    assert label_values([{"scheduler": static}, {"scheduler": small}]) == [
        {"scheduler": "static"},
        {"scheduler": "vllm"},
    ]
    assert label_values(
        [{"scheduler": static, "x": 1}, {"scheduler": small}, {"scheduler": large, "x": [1]}]
    ) == [
        {"scheduler": "static", "x": "1"},
        {"scheduler": "vllm(n=1)", "x": None},
        {"scheduler": "vllm(n=2)", "x": "[1]"},
    ]
    capped = {"type": "vllm", "n": 1, "cap": 9}
    assert label_values([{"scheduler": value} for value in (static | {"n": 1}, small, capped)]) == [
        {"scheduler": "static"},
        {"scheduler": "vllm"},
        {"scheduler": "vllm(cap=9)"},
    ]
    pools = [{"name": "few", "count": 2}], [{"name": "few", "count": 3}, {"name": "more", "count": 3}]
    assert label_values([{"pools": value} for value in pools]) == [
        {"pools": "[few]"},
        {"pools": "[few, more]"},
    ]
    assert label_values([{"pools": pools[0]}, {"pools": [{"name": "few", "count": 3}]}, {"pools": []}]) == [
        {"pools": "[few(count=2)]"},
        {"pools": "[few(count=3)]"},
        {"pools": "[]"},
    ]
    assert label_values([{"model": {"name": "m", "num_layers": 2}}]) == [{"model": "m"}]
    # A name alone beside a mapping of that type is another setting, not a replicate of it.
    assert label_values([{"scheduler": value} for value in ("vllm", small, "static")]) == [
        {"scheduler": "vllm"},
        {"scheduler": "vllm(n=1)"},
        {"scheduler": "static"},
    ]
    limits = 1.5, {"p99": 3.0}, None
    assert label_values([{"slo.ttft_s": value} for value in limits]) == [
        {"slo.ttft_s": "1.5"},
        {"slo.ttft_s": "(p99=3.0)"},
        {"slo.ttft_s": None},
    ]


def test_settings_are_named_by_as_little_as_says_which_they_are():
    assert short_keys(["scheduler.max_tokens_per_step", "seed"]) == {
        "scheduler.max_tokens_per_step": "max_tokens_per_step",
        "seed": "seed",
    }
    assert short_keys(["replicas.count"]) == {"replicas.count": "replicas.count"}
    assert list(short_keys(["workload.prompt_tokens.value", "workload.output_tokens.value"]).values()) == [
        "prompt_tokens",
        "output_tokens",
    ]
    assert list(short_keys(["prompt_tokens.max", "output_tokens.max", "value"]).values()) == [
        "prompt_tokens.max",
        "output_tokens.max",
        "value",
    ]
    assert list(short_keys(["pools.1.count", "pools.prefill.count", "pools.0.role"]).values()) == [
        "pools.1.count",
        "prefill.count",
        "role",
    ]
    assert list(short_keys(["scheduler", "scheduler.type"]).values()) == ["scheduler", "scheduler.type"]
    assert list(short_keys(["a.x.host_step_s", "b.x.host_step_s", "host_step_s"]).values()) == [
        "a.x.host_step_s",
        "b.x.host_step_s",
        "host_step_s",
    ]


def test_points_are_named_by_words_and_by_settings_where_a_value_alone_says_nothing():
    keys = ["scheduler", "scheduler.max_tokens_per_step", "kv_cache.prefix_caching", "x.y"]
    values = {keys[0]: "vllm", keys[1]: 512, keys[2]: True, keys[3]: 0.5}
    assert point_name(values, keys) == "vllm, max_tokens_per_step 512, prefix_caching true, y 0.5"
    assert point_name(values, keys[1:2]) == "max_tokens_per_step 512"
    assert point_name({"a.b": None, "c": "[1, 2]"}, ["a.b", "c"]) == "b null, c [1, 2]"
    roles = {"pools.a.role": "both", "pools.b.role": "both", "router.type": "random", "other.type": "random"}
    assert point_name(roles, list(roles)) == "a.role both, b.role both, random, random"
    assert point_name({}, []) == ""
