"""A tiny T5 and a tiny Llama, trained until they answer, then merged, tested and scored."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.merge import MergeCallback
from datamodules.generation import GenerationDataModule
from launch.cli import main
from lightning_modules.answers import read_answer
from lightning_modules.lora import LoRA
from lightning_modules.processes import AdapterDDP
from lightning_modules.text_generator import TextGenerator, greedy
from mergers import KnOTS, Merger, SheetbendError, TaskArithmetic, Ties, load_adapter
from tests.generation_stand_ins import learnable, save_tiny_llama, save_tiny_t5

TINY = {
    "seq2seq": ("flan_t5", save_tiny_t5, ["q", "k", "v", "o", "wi", "wo"], 5e-3, 6),
    "causal": (
        "llama_instruct",
        save_tiny_llama,
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        1e-2,
        9,
    ),
}
MERGERS = {
    "task-arithmetic": Merger(method=TaskArithmetic(), coefficients=0.7),
    "knots-ties": Merger(space=KnOTS(), method=Ties(density=0.5)),
}


def build(run, **options):
    _, _, targets, rate, _ = TINY[run.architecture]
    lora = LoRA(r=8, alpha=16, dropout=0.0, target_modules=targets)
    options = {"learning_rate": rate, "weight_decay": 0.0, "seed": 0, "saved_answers": 3, **options}
    return TextGenerator(run.backbone, lora, **options)


def data_of(run, **options):
    options = {"batch_size": 16, "eval_batch_size": 16, "val_samples": 24, "seed": 0, **options}
    return GenerationDataModule(run.tasks, run.family, root=str(run.folder / "data"), **options)


def trainer(run, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    folder = options.pop("default_root_dir", run.folder / "run")
    options = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **options)


@pytest.fixture(scope="module", params=list(TINY))
def run(request, tmp_path_factory):
    """Two trained adapters, and what a test of them and of their merges measured."""
    family, save, *_, epochs = TINY[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tasks, texts = learnable(folder / "data", family)
    run = SimpleNamespace(architecture=request.param, family=family, tasks=tasks, folder=folder)
    run.backbone = save(folder / "tiny", texts)
    run.model, run.data = build(run), data_of(run)
    checkpoint = AdapterCheckpoint()
    trainer(run, checkpoint, max_epochs=epochs, check_val_every_n_epoch=3).fit(run.model, run.data)
    trainer(run, MergeCallback(MERGERS)).test(run.model, run.data, verbose=False)
    run.scores = {(score.variant, score.task): score for score in run.model.scores()}
    return run


def test_adapters_learn_to_answer(run):
    assert {name for name, _ in run.scores} == {"pretrained", "finetuned", *MERGERS}
    for task in run.tasks:
        tuned, before = run.scores["finetuned", task], run.scores["pretrained", task]
        assert tuned.value > 0.9 and tuned.value > before.value + 0.3
        assert tuned.metric == "accuracy" and tuned.count == before.count == len(run.data.split(task, "test"))


def alone(run, model, prompts):
    """What a plain transformers model answers to each prompt by itself."""
    tokenizer = AutoTokenizer.from_pretrained(run.backbone)
    answers = []
    for prompt in prompts:
        if run.architecture == "causal":
            turn = [{"role": "user", "content": prompt}]
            options = {"tokenize": False, "add_generation_prompt": True, "date_string": "26 Jul 2024"}
            ids = tokenizer(tokenizer.apply_chat_template(turn, **options), add_special_tokens=False).input_ids
        else:
            ids = tokenizer(prompt).input_ids
        given = torch.tensor([ids])
        tokens = model.generate(input_ids=given, attention_mask=given.ne(-1), max_new_tokens=10, do_sample=False)[0]
        start = len(ids) if run.architecture == "causal" else 0
        answers.append(tokenizer.decode(tokens[start:], skip_special_tokens=True))
    return answers


def score(task, split, answers):
    worth = [
        read_answer(task, answer, label, reference)
        for answer, label, reference in zip(answers, split.examples.labels, split.examples.answers, strict=True)
    ]
    return sum(worth) / len(worth)


def plain(run):
    kind = AutoModelForCausalLM if run.architecture == "causal" else AutoModelForSeq2SeqLM
    return kind.from_pretrained(run.backbone).eval()


@pytest.mark.parametrize("name", MERGERS)
def test_merged_models_are_scored_as_plain_models_that_answer_one_by_one(run, name):
    merged = MERGERS[name].merge(run.model.adapters())
    model = plain(run)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for module, delta in merged.dense().items():
            parameters[f"{module}.weight"] += delta
    for task in run.data.tasks:
        split = run.data.split(task.name, "test")
        answers = alone(run, model, split.examples.prompts)
        assert run.scores[name, task.name].value == pytest.approx(score(task, split, answers))


def test_batches_answer_as_each_prompt_alone(run):
    task = run.tasks[0]
    split = run.data.split(task, "test")
    run.model.activate(task)
    one_by_one = [run.model.generate(split.batch([index])[0], 10)[0] for index in range(12)]
    inputs = split.batch(list(range(12)))[0]
    assert (inputs["attention_mask"] == 0).any()  # they differ in length
    assert run.model.generate(inputs, 10) == one_by_one


def test_saved_adapters_answer_the_same(run):
    fresh = build(run)
    trainer(run).test(fresh, data_of(run, eval_batch_size=7), verbose=False)
    for score in fresh.scores():
        assert score.value == pytest.approx(run.scores["finetuned", score.task].value)
    assert (run.folder / "run" / "adapters" / run.tasks[0] / "adapter_model.safetensors").is_file()


def test_branches_beside_the_layers_answer_as_dense_weights(run):
    branches = build(run, merged_weights="branch")
    trainer(run, MergeCallback({"task-arithmetic": MERGERS["task-arithmetic"]})).test(
        branches, data_of(run), verbose=False
    )
    for score in branches.scores():
        if score.variant == "task-arithmetic":
            assert score.value == pytest.approx(run.scores["task-arithmetic", score.task].value)


def test_answers_are_there_to_look_at(run):
    trainer(run, MergeCallback(MERGERS)).test(run.model, run.data, verbose=False)
    lines = (run.folder / "run" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == 2 * 3 * 4
    variants = ["pretrained", "finetuned", *MERGERS]
    assert [entry["variant"] for entry in answers[:5]] == [*variants, "pretrained"]
    assert [entry["example"] for entry in answers[:12:4]] == [0, 1, 2] and answers[12]["task"] == run.tasks[1]
    task = run.data.tasks[0]
    for entry in answers[1:12:4]:
        assert any(word in entry["prompt"] for word in ("fine", "lovely", "dull", "awful"))
        label = [word[0] for word in task.words].index(entry["reference"])
        assert entry["score"] == read_answer(task, entry["answer"], label, entry["reference"])


class Kept(Callback):
    """Keeps the scores of a test, which a process of its own may make."""

    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            scores = {(one.variant, one.task): (one.count, one.value) for one in pl_module.scores()}
            self.path.parent.mkdir(exist_ok=True)
            torch.save(scores, self.path)


def test_two_processes_answer_and_learn_as_one(run, tmp_path):
    found, learned = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)

        def made(*callbacks, processes=processes, folder=folder):
            flags = {"devices": 2, "strategy": AdapterDDP(start_method="fork")} if processes == 2 else {}
            flags |= {"use_distributed_sampler": False, "default_root_dir": folder, "max_epochs": 1}
            return trainer(run, *callbacks, **flags)

        data = data_of(run, batch_size=14 // processes, eval_batch_size=14 // processes)
        model = build(run, adapters=str(run.folder / "run" / "adapters"))
        made(MergeCallback(MERGERS), Kept(folder / "scores.pt")).test(model, data, verbose=False)
        found.append((torch.load(folder / "scores.pt"), (folder / "answers.jsonl").read_text()))
        made(AdapterCheckpoint()).fit(build(run), data)
        learned.append([load_adapter(folder / "adapters" / task) for task in run.tasks])
    assert found[0] == found[1] and len(found[0][0]) == 4 * len(run.tasks)
    for mine, theirs in zip(*learned, strict=True):
        assert list(mine) == list(theirs)
        for module in mine:
            torch.testing.assert_close(mine[module].dense(), theirs[module].dense(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_transformers(run, smoothing):
    run.model.label_smoothing = smoothing
    inputs, labels = run.data.split(run.tasks[0], "train").batch([0, 1, 2, 3])
    with run.model.model.disable_adapter(), torch.no_grad():
        loss = run.model.loss(run.model(inputs), labels, run.tasks[0])
        output = plain(run)(**inputs)
    logits, targets = output.logits, labels
    if run.architecture == "causal":
        logits, targets = logits[:, :-1], labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, label_smoothing=smoothing
    )
    run.model.label_smoothing = 0.0
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    if not smoothing:
        assert loss.item() == pytest.approx(output.loss.item(), abs=1e-5)


def test_less_memory_gives_the_same_gradients(run):
    gradients = []
    for checkpointing in (False, True):
        model = build(run, gradient_checkpointing=checkpointing)
        model.build(run.data.tasks)
        model.train()
        model.activate(run.tasks[0])
        inputs, labels = run.data.split(run.tasks[0], "train").batch([0, 1])
        model.loss(model(inputs), labels, run.tasks[0]).backward()
        gradients.append({name: p.grad for name, p in model.task_parameters(run.tasks[0]).items()})
    assert any(value.abs().max() > 0 for value in gradients[0].values())
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_bfloat16_trains_and_answers(run):
    model = build(run, dtype="bfloat16")
    trainer(run, max_epochs=1, limit_train_batches=2, limit_val_batches=1).fit(model, data_of(run))
    base = model.model.get_base_model()
    assert {p.dtype for name, p in base.named_parameters() if "lora" not in name} == {torch.bfloat16}
    assert len(model.scores()) == 2


def test_decoding_is_greedy_whatever_the_model_says(run):
    tokenizer = AutoTokenizer.from_pretrained(run.backbone)
    settings = GenerationConfig(
        do_sample=True, temperature=0.2, top_p=0.5, num_beams=4, eos_token_id=[7, 2], bos_token_id=1, max_length=3
    )
    found = greedy(settings, tokenizer)
    assert (found.do_sample, found.num_beams, found.eos_token_id, found.pad_token_id) == (False, 1, [7, 2], 0)
    assert found.temperature == GenerationConfig().temperature and found.max_length == GenerationConfig().max_length


def test_a_tokenizer_without_a_pad_token_pads_with_the_end(run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(run.backbone)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(run.backbone).save_pretrained(tmp_path)
    model = TextGenerator(str(tmp_path), LoRA(target_modules=["q"]))
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == 2
    assert model.architecture == run.architecture


OWN = """
seed_everything: 0
model:
  class_path: lightning_modules.TextGenerator
  init_args: {{backbone: {backbone}, lora: {{r: 4, target_modules: {targets}}}}}
data:
  class_path: datamodules.GenerationDataModule
  init_args:
    tasks: [shade]
    own_tasks:
      - {{name: shade, path: {table}, prompt: "How fine is {{thing}}?", answer: score, scoring: number,
         splits: {{train: train}}, test_fraction: 0.25}}
trainer:
  accelerator: cpu
  max_epochs: 1
  default_root_dir: {folder}
  callbacks:
    - {{class_path: callbacks.MergeCallback, init_args: {{mergers: {{mean: task-arithmetic}}}}}}
    - class_path: callbacks.ResultsCallback
    - class_path: callbacks.AdapterCheckpoint
"""


def test_own_questions_by_yaml_alone(tmp_path):
    backbone = save_tiny_t5(tmp_path / "tiny", ["How fine is story ? 0 1 2 3 4 ."])
    (tmp_path / "shade.csv").write_text("thing,score\n" + "".join(f"story {i},{i % 5}\n" for i in range(40)))
    names = {"backbone": backbone, "targets": ["q", "v"], "table": tmp_path / "shade.csv"}
    (tmp_path / "own.yaml").write_text(OWN.format(folder=tmp_path / "run", **names))
    main(["fit", "--config", str(tmp_path / "own.yaml")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "spearman" in json.dumps(results)
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 10 * 3


def test_an_ensemble_and_a_model_without_words_are_refused(run, tiny_clip):
    with pytest.raises(SheetbendError, match="ensemble is true, but the tasks share no label space"):
        trainer(run, MergeCallback({}, ensemble=True)).test(run.model, run.data, verbose=False)
    model = TextGenerator(tiny_clip, LoRA(target_modules=["q_proj"]))
    with pytest.raises(SheetbendError, match="no causal language model of its kind") as error:
        model.build_backbone()
    assert "\n" not in str(error.value)
