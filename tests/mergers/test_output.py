"""Merged folders: adapters, exact and truncated, and full models."""

import json
from functools import partial

import pytest
import torch
from builders import SHAPES, random_adapter, random_adapters
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergers import (
    Adapter,
    DenseUpdate,
    LowRankUpdate,
    Merger,
    SheetbendError,
    TallMasks,
    Ties,
    load_adapter,
    load_difference,
    save_adapter,
    save_merged,
)
from mergers.functional.linalg import truncated_svd
from mergers.output.summary import MergeSummary, ModuleNumbers
from mergers.output.truncation import rounding_error, truncate


def relative(left, right):
    return float((left.double() - right.double()).norm() / right.double().norm())


def base_tensors(dtype=torch.float32, seed=9):
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{m}.weight": torch.randn(shape, generator=generator).to(dtype) for m, shape in SHAPES.items()}
    return {**tensors, "norm.weight": torch.ones(5, dtype=dtype), "ids": torch.arange(3)}


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(base_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("the card of the base model")
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    return folder


@pytest.mark.parametrize("space", ["full", "knots", "core"])
def test_an_exact_merge_reads_back_as_it_is(space, tmp_path):
    adapters = random_adapters(3)
    merger = Merger(space, "mean" if space == "full" else Ties(density=0.5), coefficients=0.7)
    merged = merger.merge(adapters)
    summary = merged.save(tmp_path / "merged")
    again = load_adapter(tmp_path / "merged")
    for module, delta in merged.dense().items():
        assert relative(again[module].dense(), delta) < 1e-6
    assert summary.truncation_error == 0
    assert summary.rounding_error < 1e-6
    assert summary.norm == pytest.approx(sum(d.double().square().sum() for d in merged.dense().values()) ** 0.5)


def test_the_stream_writes_what_merge_and_save_write(tmp_path):
    adapters = random_adapters(3, dtype=torch.bfloat16)
    merger = Merger("knots", Ties(density=0.5))
    for rank in (None, 2):
        merger.merge(adapters).save(tmp_path / "one", rank=rank)
        save_merged(merger, adapters, tmp_path / "two", rank=rank)
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "sheetbend_merge.json"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("dense", [True, False])
def test_truncation_is_the_best_approximation_and_knows_its_error(dense):
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(40, 9, generator=generator), torch.randn(9, 30, generator=generator)
    update = DenseUpdate(B @ A) if dense else LowRankUpdate(A=A, B=B)
    s = torch.linalg.svdvals((B @ A).double())
    for rank in (1, 4, 8):
        low, squared_error, squared_norm = truncate(update, rank)
        assert low.rank == rank
        assert squared_error == pytest.approx(float(s[rank:].square().sum()), rel=1e-3)
        assert squared_norm == pytest.approx(float(s.square().sum()), rel=1e-5)
        assert (low.dense() - B @ A).norm().item() ** 2 == pytest.approx(squared_error, rel=1e-3)


def test_randomised_truncation_of_a_dense_matrix_without_gap_is_near_the_best():
    """Noise has a flat spectrum, the hardest case: still within 0.1 % of the best error, which is reported truly."""
    matrix = torch.randn(200, 160, generator=torch.Generator().manual_seed(1))
    best = torch.linalg.svdvals(matrix)[20:].norm().item()
    low, squared_error, _ = truncate(DenseUpdate(matrix), 20)
    error = (low.dense() - matrix).norm().item()
    assert best <= error <= 1.001 * best
    assert squared_error**0.5 == pytest.approx(error, rel=1e-4)


def test_truncated_svd_falls_back_to_the_exact_one_for_large_ranks():
    matrix = torch.randn(12, 10, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(truncated_svd(matrix, 10).s, torch.linalg.svdvals(matrix), rtol=1e-5, atol=1e-5)


def test_save_with_rank_reports_errors_by_module_and_in_total(tmp_path):
    merged = Merger("full", Ties(density=0.5)).merge(random_adapters(3))
    summary = merged.save(tmp_path / "merged", rank=2)
    again = load_adapter(tmp_path / "merged")
    assert {update.rank for update in again.values()} == {2}
    squared = 0.0
    for module, delta in merged.dense().items():
        error = relative(again[module].dense(), delta)
        assert summary.module_error(module) == pytest.approx(error, rel=1e-3)
        squared += (again[module].dense() - delta).square().sum().item()
    assert summary.truncation_error == pytest.approx(squared**0.5 / summary.norm, rel=1e-3)
    assert summary.worst(1)[0][1] == pytest.approx(max(map(summary.module_error, merged)))
    assert f"{summary.truncation_error:.3%}" in (tmp_path / "merged" / "README.md").read_text()
    written = json.loads((tmp_path / "merged" / "sheetbend_merge.json").read_text())
    assert written["modules"]["layers.0.q"]["truncation_error"] == summary.module_error("layers.0.q")


def test_truncated_stays_an_adapter_that_can_be_saved(tmp_path):
    merged = Merger("full", Ties(density=0.5)).merge(random_adapters(3)).truncated(3)
    assert all(isinstance(update, LowRankUpdate) and update.rank == 3 for update in merged.values())
    merged.save(tmp_path / "merged")
    assert relative(load_adapter(tmp_path / "merged")["layers.0.q"].dense(), merged["layers.0.q"].dense()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_error_is_that_of_the_saved_factors(dtype, tmp_path):
    merged = Merger("knots", "ties").merge(random_adapters(2))
    summary = merged.save(tmp_path / "merged", dtype=dtype)
    again = load_adapter(tmp_path / "merged")
    assert again["layers.0.q"].A.dtype == dtype
    for module, delta in merged.dense().items():
        assert summary.module_error(module, "rounding") == pytest.approx(
            relative(again[module].dense(), delta), rel=1e-3
        )
    assert f"rounding to {str(dtype).removeprefix('torch.')}" in (tmp_path / "merged" / "README.md").read_text()


def test_rounding_error_of_nothing_is_nothing():
    update = LowRankUpdate(torch.ones(1, 3), torch.ones(2, 1))
    assert rounding_error(update, torch.bfloat16) == 0
    nothing = MergeSummary("path", "merger", {}, [], {"m": ModuleNumbers(1, 0.0, 0.0, 0.0)})
    assert nothing.rounding_error == nothing.truncation_error == nothing.module_error("m") == 0


def test_the_card_names_adapters_and_contents(tmp_path):
    adapters = random_adapters(2, path="somewhere")
    Merger("knots", Ties(density=0.3), coefficients=0.6).merge(adapters).save(tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    for adapter in adapters:
        assert f"| {adapter.name} | 3 | 2 | `{adapter.content_hash()}` |" in card
    assert "Ties(density=0.3), in KnOTS space, coefficient 0.6" in card
    assert 'base_model: "base"' in card
    assert "library_name: peft" in card
    assert "exact" in card


def test_adapters_that_cancel_each_other_leave_nothing(tmp_path):
    """Norms from Gram matrices are rounding there, of either sign."""
    for seed in range(8):
        [one] = random_adapters(1, {"layer": (30, 20)}, ranks=3, seed=seed)
        adapters = [one, Adapter(one, "two", "base")]
        merged = Merger("full", "task_arithmetic", coefficients=[0.3, -0.3]).merge(adapters)
        assert 0 <= merged.save(tmp_path / "merged").norm < 1e-5


def test_an_adapter_that_was_trained_is_not_replaced(tmp_path):
    adapters = random_adapters(2)
    save_adapter(adapters[0], tmp_path / "trained")
    for save in (Merger().merge(adapters).save, partial(save_merged, Merger(), adapters)):
        with pytest.raises(SheetbendError, match=r"trained also holds adapter_config\.json, which would be lost"):
            save(tmp_path / "trained")
    assert load_adapter(tmp_path / "trained").content_hash() == adapters[0].content_hash()


def test_vectors_are_not_truncated():
    adapters = [Adapter({"bias": DenseUpdate(torch.ones(5)), **a}, a.name, "base") for a in random_adapters(2)]
    merged = Merger("full", Ties(density=0.5)).merge(adapters).truncated(1)
    assert merged["bias"].dense().tolist() == [1.0] * 5
    assert merged["layers.0.q"].rank == 1


def test_heads_are_kept_task_by_task(tmp_path):
    adapters = random_adapters(2)
    adapters[0].heads["classifier.weight"] = torch.ones(3, 4)
    summary = save_merged(Merger(), adapters, tmp_path / "merged")
    assert summary.heads == ["task_0"]
    assert [path.name for path in (tmp_path / "merged" / "heads").iterdir()] == ["task_0.safetensors"]
    assert load_file(tmp_path / "merged/heads/task_0.safetensors")["classifier.weight"].tolist() == [[1.0] * 4] * 3
    assert "task_0" in (tmp_path / "merged" / "README.md").read_text().partition("heads")[2]
    adapters[1].heads["w"] = torch.ones(1)
    adapters[1].name = "../escape"
    with pytest.raises(SheetbendError, match="escape"):
        save_merged(Merger(), adapters, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_model_is_the_base_plus_the_merge(sharded, dtype, tmp_path):
    tensors, folder = base_tensors(dtype), tmp_path / "base"
    folder.mkdir()
    if sharded:
        names = sorted(tensors)
        parts = {"model-1-of-2.safetensors": names[:2], "model-2-of-2.safetensors": names[2:]}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, folder / file)
        weight_map = {key: file for file, keys in parts.items() for key in keys}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, folder / "model.safetensors")
    adapters = random_adapters(3)
    merger = Merger("full", Ties(density=0.5), coefficients=0.5)
    summary = save_merged(merger, adapters, tmp_path / "merged", base_model=folder)
    merged = merger.merge(adapters).dense()
    result = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        result |= load_file(file)
    assert result.keys() == tensors.keys()
    for key, before in tensors.items():
        module = key.removesuffix(".weight")
        after = (before.float() + merged[module]).to(dtype) if module in merged else before
        assert result[key].dtype == before.dtype
        assert torch.equal(result[key], after), key
    lost = sum(
        ((result[f"{m}.weight"].float() - tensors[f"{m}.weight"].float()) - d).double().square().sum()
        for m, d in merged.items()
    )
    assert summary.rounding_error == pytest.approx(float(lost) ** 0.5 / summary.norm, rel=0.02, abs=1e-6)
    assert summary.ranks is None


def test_what_stands_beside_the_weights_comes_along(model_folder, tmp_path):
    summary = save_merged(Merger(), random_adapters(2), tmp_path / "merged", base_model=model_folder)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "sheetbend_merge.json"}
    assert "the card of the base model" not in (tmp_path / "merged/README.md").read_text()
    assert any("pytorch_model.bin" in note for note in summary.notes)
    with safe_open(tmp_path / "merged/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    before = base_tensors()
    with pytest.raises(SheetbendError, match="carries a merge already"):
        save_merged(Merger(), random_adapters(2), tmp_path / "twice", base_model=tmp_path / "merged")
    assert torch.equal(load_file(model_folder / "model.safetensors")["layers.0.q.weight"], before["layers.0.q.weight"])


def test_conv1d_weights_are_added_to_as_they_lie(tmp_path):
    adapter = random_adapter("a", {"h.c_attn": (6, 4)}, 2, fan_in_fan_out=True)
    (tmp_path / "base").mkdir()
    save_file({"transformer.h.c_attn.weight": torch.zeros(4, 6)}, tmp_path / "base/model.safetensors")
    save_merged(Merger(), [adapter], tmp_path / "merged", base_model=tmp_path / "base")
    result = load_file(tmp_path / "merged/model.safetensors")["transformer.h.c_attn.weight"]
    torch.testing.assert_close(result, adapter["h.c_attn"].dense().T)


def test_differences_of_checkpoints_merge_into_their_base(model_folder, tmp_path):
    after = {key: value + 1 if value.is_floating_point() else value for key, value in base_tensors().items()}
    (tmp_path / "tuned").mkdir()
    save_file(after, tmp_path / "tuned/model.safetensors")
    adapters = [load_difference(tmp_path / "tuned", model_folder, name=name) for name in "ab"]
    save_merged(Merger("full", "mean", coefficients=0.5), adapters, tmp_path / "merged", base_model=model_folder)
    result = load_file(tmp_path / "merged/model.safetensors")
    for key, value in base_tensors().items():
        torch.testing.assert_close(result[key], value + 0.5 if value.is_floating_point() else value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merger": Merger("full", "ties")}, ["Ties in space Full gives dense", "rank=", "full model"]),
        ({"rank": 0}, ["rank is 0"]),
        ({"rank": 2.5}, ["rank is 2.5"]),
        ({"dtype": torch.int8}, ["dtype is torch.int8"]),
        ({"rank": 2, "base_model": "base"}, ["rank is 2", "full model"]),
        ({"base_model": "nowhere"}, ["nowhere is no folder"]),
        ({"base_model": "empty"}, ["no full checkpoint"]),
        ({"path": "base"}, ["base also holds config.json"]),
        ({"path": "base", "base_model": "base"}, ["base also holds"]),
        ({"path": "base/inside", "base_model": "base"}, ["lie in each other"]),
        (
            {"adapters": [random_adapter("a", {"elsewhere": (3, 4)}, 2)], "base_model": "base"},
            ["base has no elsewhere"],
        ),
        ({"adapters": [random_adapter("a", {"layers.0.q": (6, 4)}, 2)], "base_model": "base"}, ["(6, 5)", "(6, 4)"]),
        ({"adapters": [Adapter({"bias": DenseUpdate(torch.ones(3))}, "a")]}, ["bias (3,)", "no LoRA", "base_model="]),
        ({"adapters": [Adapter({"w": DenseUpdate(torch.ones(3, 3))}, "a")]}, ["no low rank", "rank=", "base_model="]),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_work(options, words, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    started = []
    options = {"merger": Merger(), "adapters": random_adapters(2), "path": "merged", **options}
    with pytest.raises(SheetbendError) as caught:
        save_merged(**options, progress=lambda *_: started.append(1))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not started
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sum_that_does_not_fit_the_models_dtype_leaves_nothing(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"w.weight": torch.full((3, 4), 60000.0, dtype=torch.float16)}, tmp_path / "base/model.safetensors")
    adapter = Adapter({"w": LowRankUpdate(torch.full((1, 4), 100.0), torch.full((3, 1), 100.0))}, "a")
    with pytest.raises(SheetbendError, match=r"w\.weight: base and update together do not fit torch\.float16"):
        save_merged(Merger(), [adapter], tmp_path / "merged", base_model=tmp_path / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_missing_modules_may_count_as_zero(tmp_path):
    one = random_adapter("one", SHAPES, 2, seed=1)
    two = random_adapter("two", {"layers.0.q": SHAPES["layers.0.q"]}, 2, seed=2)
    with pytest.raises(SheetbendError, match=r"has no module layers\.0\.v, layers\.1\.q"):
        Merger().merge([one, two])
    merged = Merger("knots", "mean").merge([one, two], missing="zero").dense()
    torch.testing.assert_close(merged["layers.0.v"], one["layers.0.v"].dense() / 2)
    summary = save_merged(Merger(), [one, two], tmp_path / "merged", missing="zero")
    assert any("layers.0.v" in note for note in summary.notes)


@pytest.mark.parametrize("rank", [24, 40])
def test_truncation_from_the_span_of_the_sources_is_near_the_best(rank):
    """TIES of random adapters, whose span is wider (rank 24) or narrower (rank 40) than what is iterated."""
    adapters = random_adapters(6, {"m": (320, 300)}, ranks=8)
    merged = Merger("full", Ties(density=0.3)).merge(adapters)
    delta = merged.dense()["m"]
    best = torch.linalg.svdvals(delta.double())[rank:].norm().item()
    error = (merged.truncated(rank).dense()["m"] - delta).norm().item()
    assert best * 0.9999 <= error <= 1.005 * best


def test_a_lora_on_tied_embeddings_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(9, 4)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text('{"tie_word_embeddings": true}')
    adapter = random_adapter("a", {"model.embed_tokens": (4, 9)}, 2, kinds={"model.embed_tokens": "embedding"})
    with pytest.raises(SheetbendError, match=r"embed_tokens.*tied"):
        save_merged(Merger(), [adapter], tmp_path / "merged", base_model=tmp_path / "base")
    (tmp_path / "base/config.json").write_text('{"tie_word_embeddings": false}')
    save_merged(Merger(), [adapter], tmp_path / "merged", base_model=tmp_path / "base")
    result = load_file(tmp_path / "merged/model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(result, adapter["model.embed_tokens"].dense().T)


def test_one_tasks_own_model_says_so_and_keeps_its_head_alone(tmp_path):
    adapters = random_adapters(3)
    for adapter in adapters:
        adapter.heads["w"] = torch.ones(1)
    merger = Merger("full", TallMasks())
    summary = save_merged(merger, adapters, tmp_path / "one", rank=2, for_task="task_1")
    assert summary.heads == ["task_1"]
    assert "for task_1 alone" in (tmp_path / "one/README.md").read_text()
    merger.merge(adapters, for_task="task_1").save(tmp_path / "two", rank=2)
    assert (tmp_path / "one/README.md").read_bytes() == (tmp_path / "two/README.md").read_bytes()
    with pytest.raises(SheetbendError, match="for_task is 'task_9'"):
        save_merged(merger, adapters, tmp_path / "three", rank=2, for_task="task_9")


def test_a_rank_that_cuts_off_most_is_remarked_on(tmp_path):
    merged = Merger("full", Ties(density=0.5)).merge(random_adapters(3))
    assert not any("cuts off" in note for note in merged.save(tmp_path / "most", rank=5).notes)
    summary = merged.save(tmp_path / "little", rank=1)
    assert [note for note in summary.notes if f"cuts off {summary.truncation_error:.0%}" in note]
    assert "truncation_error=0." in repr(summary)
    assert len(repr(summary)) < 250


def test_a_merged_classifier_loads_in_peft_without_its_head(tmp_path):
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def base():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
        return LlamaForSequenceClassification(config).eval()

    for seed, task in enumerate(("a", "b")):
        torch.manual_seed(seed)
        settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base(), settings).save_pretrained(tmp_path / task)
    adapters = [load_adapter(tmp_path / task) for task in ("a", "b")]
    merged = Merger("knots", Ties(density=0.5)).merge(adapters)
    summary = merged.save(tmp_path / "merged")
    assert summary.heads == ["a", "b"]
    loaded = PeftModel.from_pretrained(base(), tmp_path / "merged")
    layer = loaded.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(layer.get_delta_weight("default"), merged["model.layers.0.self_attn.q_proj"].dense())
    loaded.base_model.model.load_state_dict(load_file(tmp_path / "merged/heads/a.safetensors"), strict=False)
    assert torch.equal(loaded.base_model.model.score.weight, adapters[0].heads["score.weight"])
