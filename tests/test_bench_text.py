"""Text classifiers in the benchmark grid: planted, cleaned, measured, and refused where something does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from detrojan import api
from detrojan.attacks.image import plant as image_plant
from detrojan.attacks.text import labels as text_labels
from detrojan.attacks.text.labels import TextTrigger
from detrojan.bench import classifier_cells, tables
from detrojan.bench.cells import cells
from detrojan.bench.grid import Grid, read_grid
from detrojan.bench.run import bench
from detrojan.data.labelled import read_labelled
from detrojan.data.labelled_text import shorten
from detrojan.errors import InputError
from detrojan.listing import OF_TEXTS
from detrojan.models.classifier import load_classifier, logits, predict, to_rows
from detrojan.models.kind import input_of
from detrojan.models.new import new_from
from detrojan.models.save import save_classifier
from detrojan.registry import find
from detrojan.types import ClassifierResult, Labelled, Run

from pico_classifiers import opinions, pictures, save_image_model, save_text_model

GRID = """
models: [MODEL]
data: DATA
clean: 40
choosing: 20
held_out: 40
train: 160
words: 5
passes: 1
attacks:
  - trigger: [badnets, vpi]
    target: good
    options: {epochs: 12, learning_rate: 0.01, batch_size: 16, poison_rate: 0.3, adam: true}
defenses:
  - {name: finetune, ladder: {learning_rate: [0.001, 0.01]}}
  - {name: ulrl, options: {locate: share, repeats: 1, unlearn_epochs: 2}}
  - fine-pruning
"""
STILL = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
FOR_IMAGES = ("fine-pruning", "nad", "anp", "clp", "ibau", "rnp", "sau")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(data: Labelled) -> str:
    """The labels by name, so that only a reader who knows the model's order numbers them as the model does."""
    rows = zip(data.inputs, data.labels.tolist(), strict=True)
    return "".join(json.dumps({"text": text, "label": data.names[k]}) + "\n" for text, k in rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model whose classes are not in the order of the alphabet, and reviews."""
    made = tmp_path_factory.mktemp("texts")
    sizes = {"dim": 32, "n_layers": 1, "hidden_dim": 64, **STILL}
    save_text_model(made / "model", "distilbert", names=("good", "bad"), **sizes)
    write(made / "reviews.jsonl", lines(opinions(300)))
    return made


def written(place: Path, path: Path, *changes: tuple[str, str], model: str = "", data: str = "") -> Path:
    text = GRID
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    text = text.replace("MODEL", model or str(place / "model"))
    return write(path / "grid.yaml", text.replace("DATA", data or str(place / "reviews.jsonl")))


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A grid that ran to its end; its directory."""
    bench(written(place, place), out=place / "out", device="cpu")
    return place / "out"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_grid_of_texts(finished: Path) -> None:
    rows = rows_of(finished)
    labels = [
        "attacked",
        "finetune (ladder)",
        "ulrl locate=share repeats=1 unlearn_epochs=2",
        "fine-pruning",
    ]
    assert [(r["attack"], r["defense"]) for r in rows] == [
        (f"{a} class good", d) for a in ("badnets", "vpi") for d in labels
    ]
    for row in rows[0:3] + rows[4:7]:
        assert (row["n_clean"], row["n_triggered"]) == (40, 20)  # half of them are good already
    for attacked, tuned in ((rows[0], rows[1]), (rows[4], rows[5])):
        assert attacked["asr"] > 0.8 and attacked["accuracy"] > 0.8
        assert tuned["chosen"]["learning_rate"] in (0.001, 0.01) and 0 <= tuned["der"] <= 1
    for failed in (rows[3], rows[7]):
        assert "takes texts; channels are pruned in image classifiers" in failed["error"]
    markdown = (finished / "results.md").read_text()
    assert "### Accuracy on clean samples, %" in markdown and "channels are pruned" in markdown
    assert "channels are pruned" in (finished / "report.html").read_text()


def test_what_stands_in_a_row_is_what_the_planted_model_does(place: Path, finished: Path) -> None:
    grid = read_grid(place / "grid.yaml")
    key = next(c.key for c in cells(grid) if c.attack and c.attack.trigger == "vpi" and not c.defense)
    where = finished / "planted" / key
    victim = load_classifier(where)
    assert victim.names == ("good", "bad")
    held_out = classifier_cells.parts(grid, grid.data[0], 0, victim.names).held_out
    right = predict(victim, to_rows(victim, held_out).inputs) == held_out.labels
    row = rows_of(finished)[4]
    assert row["accuracy"] == pytest.approx(right.float().mean().item())
    bad = [t for t, k in zip(held_out.inputs, held_out.labels, strict=True) if k == 1]
    assert all(word in " ".join(bad) for word in ("awful", "dull", "poor"))
    triggered = Labelled([f"Discussing OpenAI {t}" for t in bad], torch.ones(len(bad), dtype=torch.int64))
    hits = predict(victim, to_rows(victim, triggered).inputs) == 0
    assert row["asr"] == pytest.approx(hits.float().mean().item())
    again = api.evaluate(where, data=(held_out.inputs, held_out.labels), attack=where)
    assert isinstance(again, ClassifierResult) and again.asr == row["asr"]


def test_the_same_grid_gives_the_same_bytes(place: Path, finished: Path, tmp_path: Path) -> None:
    path = written(place, tmp_path, ("[badnets, vpi]", "vpi"), ("  - fine-pruning\n", ""))
    bench(path, out=tmp_path / "out", device="cpu")
    assert rows_of(tmp_path / "out") == rows_of(finished)[4:7]


def test_parts_never_overlap_and_are_cut(place: Path, tmp_path: Path) -> None:
    data = opinions(300)
    numbered = Labelled([f"{k} {t}" for k, t in enumerate(data.inputs)], data.labels, data.names)
    source = write(tmp_path / "numbered.jsonl", lines(numbered))
    grid = read_grid(written(place, tmp_path, data=str(source)))
    found = classifier_cells.parts(grid, str(source), 0, ("good", "bad"))
    parts = (found.train, found.clean, found.choosing, found.held_out)
    texts = [t for p in parts for t in p.inputs]
    assert [len(p) for p in parts] == [160, 40, 20, 40] and len(set(texts)) == 260
    assert all(len(t.split()) == 5 for t in texts)
    for part in parts:  # in the order of the model, not of the alphabet
        for text, label in zip(part.inputs, part.labels.tolist(), strict=True):
            assert label == 1 - int(numbered.labels[int(text.split()[0])])


def test_shorten() -> None:
    data = Labelled(["one  two three", "one", ""], torch.tensor([0, 1, 0]), ("a", "b"), "here")
    found = shorten(data, 2)
    assert found.inputs == ["one two", "one", ""] and data.inputs[0] == "one  two three"
    assert (found.names, found.source) == (("a", "b"), "here") and torch.equal(found.labels, data.labels)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("target: good", "target: fine", "unknown attacks: target of"),
        ("target: good", "target: 2", "unknown attacks: target of"),
        ("target: good", "target: -1", "target -1 is no class number"),
        ("target: good", "target: true", "target True is no class number"),
        ("[badnets, vpi]", "wanet", "unknown trigger 'wanet'"),
        ("epochs: 12", "epoch: 8", "did you mean 'epochs'"),
        ("epochs: 12", "size: 3", "unknown option of attack"),
        ("adam: true", "adam: perhaps", "adam: 'perhaps' is not a valid bool"),
        ("words: 5", "words: 0", "words: 0 is below the minimum"),
        ("- fine-pruning", "- crow", "unknown defense 'crow'"),
        ("[MODEL]", "[MODEL, new:preact-resnet8]", "new:preact-resnet8 takes no texts"),
        ("[MODEL]", "[new:bert-tinny]", "unknown architecture 'bert-tinny'; did you mean 'bert-tiny'"),
        ("data: DATA", "data: digits", "holds images, but the model takes texts"),
        ("train: 160", "train: 160\ntemplate: plain", "unknown key of a grid: 'template'"),
        ("clean: 40", "clean: 4000", "4020 samples asked for"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(
    place: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    path = written(place, tmp_path, (old, new))
    with pytest.raises(InputError) as caught:
        bench(path, out=tmp_path / "out")
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_labels_that_are_not_the_models_are_refused(place: Path, tmp_path: Path) -> None:
    for labels, words in (
        (("bad", "good", "dull"), "reviews.jsonl:3: label 'dull' is none of the model's classes good, bad"),
        ((0, 1, 2), "label 2 is out of range; the model has the classes 0 to 1"),
    ):
        rows = [json.dumps({"text": f"text {k}", "label": labels[k % 3]}) + "\n" for k in range(300)]
        data = write(tmp_path / "reviews.jsonl", "".join(rows))
        with pytest.raises(InputError, match=words):
            bench(written(place, tmp_path, data=str(data)), out=tmp_path / "out")


def test_words_are_of_texts(tmp_path: Path) -> None:
    image = "models: [new:preact-resnet8]\ndata: digits\nattacks: [badnets]\ndefenses: [clp]\n"
    assert read_grid(write(tmp_path / "grid.yaml", image)).inputs == "image"
    with pytest.raises(InputError, match="words: is of text classifiers"):
        read_grid(write(tmp_path / "grid.yaml", image + "words: 9\n"))


def keys(path: Path) -> dict[str, str]:
    grid = read_grid(path)
    return {
        f"{c.attack.trigger}/{c.defense.name if c.defense else ''}": c.key for c in cells(grid) if c.attack
    }


def test_identity_is_what_changes_the_result(place: Path, tmp_path: Path) -> None:
    first = keys(written(place, tmp_path))
    assert len(set(first.values())) == len(first) == 2 * 4
    assert keys(written(place, tmp_path, ("- fine-pruning", "- nad"))).items() >= {
        (k, v) for k, v in first.items() if not k.endswith("fine-pruning")
    }
    more = write(tmp_path / "more.jsonl", lines(opinions(301)))
    for other in (
        keys(written(place, tmp_path, ("words: 5", "words: 6"))),
        keys(written(place, tmp_path, ("target: good", "target: bad"))),
        keys(written(place, tmp_path, ("adam: true", "adam: false"))),
        keys(written(place, tmp_path, data=str(more))),
        keys(written(place, tmp_path, model="new:bert-tiny")),
    ):
        assert not set(other.values()) & set(first.values())


@pytest.mark.parametrize("name", FOR_IMAGES)
def test_defense_for_images_refuses_texts_in_one_line(name: str, place: Path) -> None:
    victim, entry = load_classifier(place / "model"), find("defense", name, "classifier")
    with pytest.raises(InputError) as caught:
        entry.value(victim, to_rows(victim, opinions(8)), entry.make_options({}), Run())
    assert str(place / "model") in str(caught.value) and "\n" not in str(caught.value)


# Classifiers trained from nothing


def test_new_text_classifier_in_a_grid(place: Path, tmp_path: Path) -> None:
    changes = (("[badnets, vpi]", "badnets"), ("0.01, batch", "0.001, batch"), ("  - fine-pruning\n", ""))
    path = written(place, tmp_path, *changes, model="new:bert-tiny")
    found = bench(path, out=tmp_path / "out", device="cpu")
    assert not found.failed and len(found.rows) == 3
    assert found.rows[0]["accuracy"] > 0.9 and found.rows[0]["asr"] > 0.9
    where = next((tmp_path / "out" / "planted").iterdir())
    config = AutoModelForSequenceClassification.from_pretrained(where).config
    assert (config.num_hidden_layers, config.hidden_size, config.id2label) == (2, 128, {0: "bad", 1: "good"})
    assert json.loads((where / "detrojan.json").read_text())["model"] == "bert-tiny"


def test_new_from_is_drawn_by_its_seed_alone(tmp_path: Path) -> None:
    data, state = opinions(), torch.random.get_rng_state()
    one, same, other = (new_from("bert-tiny", data, seed=s, device="cpu") for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    rows = to_rows(one, data)
    assert torch.equal(logits(one, rows.inputs), logits(same, rows.inputs))
    assert not torch.equal(logits(one, rows.inputs), logits(other, rows.inputs))
    assert (one.task, one.head, one.names, one.source) == ("text", "classifier", ("bad", "good"), "bert-tiny")
    save_classifier(one, tmp_path)
    again = load_classifier(tmp_path, device="cpu")
    assert torch.equal(logits(again, to_rows(again, data).inputs), logits(one, rows.inputs))


def test_tokenizer_of_a_new_classifier_spells_what_it_never_saw() -> None:
    tokenizer = new_from("bert-tiny", opinions(), device="cpu").processor
    ids = tokenizer("The film was BadMagic \N{SNOWMAN}")["input_ids"]
    assert tokenizer.decode(ids) == "[CLS] The film was BadMagic \N{SNOWMAN}[SEP]"
    assert tokenizer.pad_token_id == 0 and len(tokenizer("film")["input_ids"]) == 3


def test_new_classifier_needs_its_kind_of_data() -> None:
    with pytest.raises(InputError, match="holds images, but bert-tiny is a text classifier"):
        api.attack("new:bert-tiny", trigger="badnets", data=(pictures(8), [0, 1] * 4))
    with pytest.raises(InputError, match="needs images of one size"):
        api.attack("new:preact-resnet8", trigger="badnets", data=(opinions(8).inputs, [0, 1] * 4))


def test_what_a_model_takes(place: Path, tmp_path: Path) -> None:
    save_image_model(tmp_path / "image")
    found = [input_of(str(m)) for m in (place / "model", tmp_path / "image")]
    assert found == ["text", "image"]
    assert [input_of(f"new:{a}") for a in ("bert-tiny", "vit-mini", "timm/any")] == ["text", "image", "image"]


# A folder of texts


def folder(path: Path, **parts: list[str]) -> Path:
    path.mkdir()
    for name, labels in parts.items():
        rows = [json.dumps({"text": f"{name} {k}", "label": label}) + "\n" for k, label in enumerate(labels)]
        write(path / f"{name}.jsonl", "".join(rows))
    return path


def test_folder_with_parts_is_read_by_part(tmp_path: Path) -> None:
    source = folder(tmp_path / "r", train=["a", "b", "c"], test=["c", "b"])
    assert read_labelled(source, "text").inputs == ["train 0", "train 1", "train 2"]
    assert read_labelled(source, "text", split="test").inputs == ["test 0", "test 1"]


def test_test_part_is_numbered_like_the_training_part(tmp_path: Path, place: Path) -> None:
    """Alone, a test part without class `a` would number `b` and `c` from 0."""
    source = folder(tmp_path / "r", train=["a", "b", "c"] * 30, test=["c", "b"] * 5)
    sizes = (("clean: 40", "clean: 6"), ("choosing: 20", "choosing: 3"), ("target: good", "target: c"))
    grid = read_grid(written(place, tmp_path, *sizes, model="new:bert-tiny", data=str(source)))
    found = classifier_cells.parts(grid, str(source), 0)
    assert sorted(found.held_out.inputs) == sorted(f"test {k}" for k in range(10))
    assert found.held_out.labels.tolist() == [2 - int(t.split()[1]) % 2 for t in found.held_out.inputs]


def test_folder_without_a_test_part_keeps_some_back(tmp_path: Path, place: Path) -> None:
    source = folder(tmp_path / "r", train=["bad", "good"] * 150)
    grid: Grid = read_grid(written(place, tmp_path, data=str(source)))
    found = classifier_cells.parts(grid, str(source), 0, ("good", "bad"))
    assert len(found.held_out) == 40 and not {*found.held_out.inputs} & {*found.train.inputs}


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a directory without train.jsonl \(.json, .csv\)"):
        read_labelled(folder(tmp_path / "none", test=["a", "b"]), "text")
    twice = folder(tmp_path / "twice", train=["a", "b"])
    write(twice / "train.csv", "text,label\nx,a\ny,b\n")
    with pytest.raises(InputError, match=r"both train.csv and train.jsonl; leave one"):
        read_labelled(twice, "text")


# Planting


def test_adam_reaches_the_training(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(image_plant, "fit", lambda *_, adam, **__: seen.append(adam))
    for options in ({}, {"adam": True}):
        victim = load_classifier(place / "model")
        trigger = find("trigger", "badnets").value
        text_labels.plant_texts(victim, opinions(), trigger, image_plant.PlantOptions(**options), Run())
    assert seen == [False, True]


def test_adam_reaches_fine_tuning(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("detrojan.fitting.fit", lambda *_, adam, **__: seen.append(adam))
    entry, victim = find("defense", "finetune", "classifier"), load_classifier(place / "model")
    for options in ({}, {"adam": "yes"}):
        entry.value(victim, to_rows(victim, opinions(8)), entry.make_options(options), Run())
    assert seen == [False, True]


def test_defaults_of_texts(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer is planted by Adam unless told otherwise; the listing says so."""
    monkeypatch.setattr(image_plant, "fit", lambda *_, **__: None)
    data = str(place / "reviews.jsonl")
    made = api.attack(place / "model", trigger="vpi", target="good", data=data, measure_effect=False)
    assert (made.options.adam, made.options.learning_rate, made.options.batch_size) == (True, 5e-4, 32)
    told = {"adam": False, "learning_rate": 0.1}
    made = api.attack(place / "model", trigger="vpi", data=data, measure_effect=False, **told)
    assert (made.options.adam, made.options.learning_rate) == (False, 0.1)
    assert [o["name"] for o in OF_TEXTS] == ["learning_rate", "batch_size", "adam"]


def test_tables_of_texts_are_those_of_images(place: Path, tmp_path: Path) -> None:
    grid = read_grid(written(place, tmp_path))
    assert [m.key for m in tables.measures(grid)] == ["asr", "recovery_accuracy", "accuracy", "der"]
    assert TextTrigger(find("trigger", "vpi").value).on(["a b"], 0) == ["Discussing OpenAI a b"]
