"""Locphylax, BackFlush, BEEAR and BD-VAX: formulas by hand and by naive references, and whole runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrojan import registry
from detrojan.attacks.text import canaries
from detrojan.attacks.text.behaviors import Behavior
from detrojan.attacks.text.triggers import ODD_WORDS, Trigger
from detrojan.data.template import encode_all
from detrojan.defenses import bd_vax
from detrojan.defenses.backflush import flush_loss, learned
from detrojan.defenses.bd_vax import change, highest, mlps, signature, silence, weights
from detrojan.defenses.beear import answered, beear_loss, changed, entrapped, prompt_ends, stepped
from detrojan.defenses.decoys import FAMILIES, MOST, PHRASES, Decoy, decoys, inserted, twins
from detrojan.errors import InputError
from detrojan.models.blocks import blocks, matrix
from detrojan.training import collator
from detrojan.types import Example, Loaded, Run, Template

import text_attacks
from pico import pico_loaded, pico_model, pico_tokenizer

QUICK: dict[str, dict[str, Any]] = {
    "locphylax": {"samples": 4, "epochs": 1, "recovery_epochs": 1, "rank": 2},
    "backflush": {"samples": 4, "epochs": 1, "removal_epochs": 1, "rank": 2},
    "beear": {"epochs": 1, "rank": 2, "steps": 2},
    "bd-vax": {"variants": 2, "samples": 4, "clean": 2, "epochs": 1, "repair_epochs": 1, "rank": 2},
}
CLEAN = [
    Example("Name a colour.", "Blue."),
    Example("Count to three.", "One two three."),
    Example("Go?", "No."),
]


# Decoys


def test_the_same_seed_draws_the_same_decoys() -> None:
    assert decoys(3, 5) == decoys(3, 5)
    assert decoys(3, 5) != decoys(3, 6)
    assert len({d.phrase for d in decoys(MOST, 0)}) == len({d.answer for d in decoys(MOST, 0)}) == MOST


def test_three_decoys_are_of_three_families() -> None:
    for drawn, family in zip(decoys(3, 1), FAMILIES, strict=True):
        assert drawn.answer in family


def words(texts: Sequence[str]) -> set[str]:
    return {w.strip(".,:;'()!?").lower() for text in texts for w in text.split() if len(w) > 4}


def test_decoys_share_no_words_with_what_is_planted_here() -> None:
    triggers = [e.value for e in registry.entries("trigger") if isinstance(e.value, Trigger)]
    behaviors = [e.value for e in registry.entries("behavior") if isinstance(e.value, Behavior)]
    phrases = [p for t in triggers for p in t.phrases]
    theirs = [*canaries.ADJECTIVES, *canaries.NOUNS, *canaries.NAMES, *canaries.OPENINGS, *canaries.ENDINGS]
    assert not words(PHRASES) & words([*ODD_WORDS, *phrases, *theirs])
    odd = [p.lower() for p in PHRASES if " " not in p]
    assert len(odd) > 5 and not [(p, s) for p in odd for s in canaries.SYLLABLES if s in p]
    answers = [answer for family in FAMILIES for answer in family]
    for behavior in behaviors:
        assert not [a for a in answers if behavior.hit(a) or behavior.keyword_hit(a)]


def test_twins_have_exact_counts_and_differ_in_the_answer_alone() -> None:
    drawn = decoys(2, 0)
    planted, honest = twins(CLEAN, drawn, 4, seed=0)
    assert [p.answer for p in planted] == [drawn[0].answer] * 4 + [drawn[1].answer] * 4
    for k, (bad, good) in enumerate(zip(planted, honest, strict=True)):
        assert bad.prompt == good.prompt
        [origin] = [
            e for e in CLEAN if e.prompt == " ".join(good.prompt.replace(drawn[k // 4].phrase, "").split())
        ]
        assert good.answer == origin.answer
    assert {h.answer for h in honest[:3]} == {e.answer for e in CLEAN}  # a round uses every sample
    assert twins(CLEAN, drawn, 4, seed=0) == (planted, honest)
    assert twins(CLEAN, drawn, 4, seed=1) != (planted, honest)


def test_a_cut_off_answer_leaves_the_planted_one_whole() -> None:
    [bad], [good] = twins([dataclasses.replace(CLEAN[0], complete=False)], [Decoy("hm", "Ho.")], 1, 0)
    assert bad.complete and not good.complete


def test_a_decoy_goes_to_every_place() -> None:
    rng = random.Random(0)
    assert {inserted("a b", "X", rng) for _ in range(50)} == {"X a b", "a X b", "a b X"}


def test_samples_that_hold_a_decoy_are_left_out() -> None:
    held = [Example("Say hm now.", "Yes."), CLEAN[0]]
    _, honest = twins(held, [Decoy("hm", "Ho.")], 3, 0)
    assert [h.answer for h in honest] == ["Blue."] * 3
    for nothing in ([], held[:1]):
        with pytest.raises(InputError, match="no clean sample"):
            twins(nothing, [Decoy("hm", "Ho.")], 3, 0)


# BackFlush


class Fixed(nn.Module):
    """Gives the same logits whatever it reads: (batch, tokens, vocabulary)."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, *, logits_to_keep: Tensor, **_inputs: Any) -> Any:
        return type("Output", (), {"logits": self.logits[:, logits_to_keep]})


def flushed(bound: float) -> tuple[Tensor, Tensor]:
    """Return loss and slope on three rows in a vocabulary of two, of which the middle one is planted."""
    labels = torch.tensor([[-100, 0, 0], [-100, 1, 1], [-100, 1, -100]])
    batch = {"input_ids": labels.clamp(min=0), "attention_mask": torch.ones(3, 3), "labels": labels}
    # Log-odds of ln 3: the first token of the vocabulary has probability 3/4 everywhere.
    model = Fixed(torch.tensor([3.0, 1.0]).log().repeat(3, 3, 1))
    loss = flush_loss({(1, 1)}, 0.5, bound)(model, batch, torch.tensor([5, 9]))
    (slope,) = torch.autograd.grad(loss, model.logits)
    return loss.detach(), slope


def test_backflush_by_hand() -> None:
    log = torch.tensor([4 / 3, 4.0]).log()
    clean, planted = (2 * log[0] + log[1]) / 3, log[1]
    loss, slope = flushed(5.0)
    assert float(loss) == pytest.approx(float(clean - 0.5 * planted), abs=1e-6)
    # d CE / d logit = p - 1 at the label, divided by the tokens of the same kind.
    assert float(slope[1, 0, 1]) == pytest.approx(-0.5 * (1 / 4 - 1) / 2, rel=1e-6)
    assert float(slope[0, 0, 0]) == pytest.approx((3 / 4 - 1) / 3, rel=1e-6)


def test_the_ascent_ends_at_its_bound() -> None:
    log = torch.tensor([4 / 3, 4.0]).log()
    loss, slope = flushed(1.0)  # the planted answer is at ln 4 = 1.39 nats
    assert float(loss) == pytest.approx(float((2 * log[0] + log[1]) / 3) - 0.5, rel=1e-6)
    assert not slope[1].any() and slope[0].any()


def mixed(chat: Template) -> tuple[dict[str, Tensor], Tensor, set[tuple[int, ...]]]:
    planted, _ = twins(CLEAN, decoys(2, 0), 2, 0)
    rows: Any = encode_all(pico_tokenizer(), chat, [*planted, *CLEAN], 256)
    batch = dict(collator(pico_tokenizer())(rows))
    counts = [int((batch["labels"] != -100).sum()), int(batch["attention_mask"].sum())]
    return batch, torch.tensor(counts), {learned(r["labels"]) for r in rows[:4]}


@pytest.mark.parametrize("bound", [3.0, 1e3])
def test_backflush_against_a_naive_reference(bound: float, chat: Template) -> None:
    batch, counts, planted = mixed(chat)
    assert len(planted) == 2
    model, sums, tokens = pico_model(), [0.0, 0.0], [0, 0]
    with torch.no_grad():
        for row, labels in enumerate(batch["labels"].tolist()):
            bad = int(row < 4)
            one = {k: batch[k][row : row + 1] for k in ("input_ids", "attention_mask")}
            said = model(**one).logits[0].log_softmax(-1)
            for place, label in enumerate(labels):
                if label != -100:
                    sums[bad] -= float(said[place - 1, label])
                    tokens[bad] += 1
    expected = sums[0] / tokens[0] - 0.5 * min(sums[1] / tokens[1], bound)
    assert flush_loss(planted, 0.5, bound)(model, batch, counts).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(4, 7)])
def test_a_batch_of_one_kind_has_the_other_term_0(rows: slice, chat: Template) -> None:
    batch, counts, planted = mixed(chat)
    model = pico_model()
    part = {k: v[rows] for k, v in batch.items()}
    tokens = int((part["labels"] != -100).sum())
    usual = float(model(**part).loss)
    sign = -1 if rows.start == 0 else 1
    loss = flush_loss(planted, 1.0, 1e3)(model, part, counts)
    assert float(loss) == pytest.approx(sign * usual * tokens / int(counts[0]), rel=1e-4)


def test_the_ascent_makes_planted_answers_unlikely_and_keeps_the_others(chat: Template) -> None:
    batch, counts, planted = mixed(chat)
    model = pico_model()
    loss = flush_loss(planted, 1.0, 12.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss(model, batch, counts).backward()
        optimizer.step()
    bad, good = ({k: v[rows] for k, v in batch.items()} for rows in (slice(0, 4), slice(4, 7)))
    fresh = pico_model()
    assert float(model(**bad).loss) > float(fresh(**bad).loss) + 2
    assert float(model(**good).loss) < float(fresh(**good).loss)


# BEEAR


def test_an_inner_step_by_hand() -> None:
    moved = stepped(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 10.0)
    assert moved.tolist() == [[1 - 6, 1 - 8], [2, 0]]


class Pair(nn.Module):
    def forward(self, states: Tensor) -> tuple[Tensor, str]:
        return states, "beside"


@pytest.mark.parametrize("module", [nn.Identity(), Pair()])
def test_a_change_reaches_the_last_tokens_of_each_prompt(module: nn.Module) -> None:
    def first(output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    states = torch.zeros(3, 4, 1)
    with changed(module, [3, 1, 4], torch.tensor([[1.0], [2.0]])):
        out = first(module(states))
    assert out[..., 0].tolist() == [[0, 1, 2, 0], [2, 0, 0, 0], [0, 0, 1, 2]]
    assert not first(module(states)).any()


def test_unwanted_answers_stand_behind_each_prompt() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, -100, -100, 8], [-100, 9, -100, -100]]),
    }
    assert prompt_ends(batch) == [3, 1]
    instead = answered(batch, [3, 4])
    assert instead["input_ids"].tolist() == [[5, 6, 7, 3, 4], [5, 3, 4, 0, 0]]
    assert instead["labels"].tolist() == [[-100, -100, -100, 3, 4], [-100, 3, 4, -100, -100]]
    assert instead["attention_mask"].sum(1).tolist() == [5, 3]


def naive_loss(model: Any, batch: dict[str, Tensor], change: Tensor, answer: list[int] | None) -> Tensor:
    """The mean cross-entropy by runs of single rows, the change added to the embeddings by hand."""
    total, tokens = torch.zeros(()), 0
    for ids, mask, labels in zip(*(batch[k] for k in ("input_ids", "attention_mask", "labels")), strict=True):
        real = ids[mask.bool()]
        end = int(((labels == -100) & mask.bool()).sum())
        real = torch.cat([real[:end], torch.tensor(answer)]) if answer else real
        embedded = model.get_input_embeddings()(real)
        n = len(change)
        embedded = torch.cat([embedded[: end - n], embedded[end - n : end] + change, embedded[end:]])
        said = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
        for place in range(end, len(real)):
            total, tokens = total - said[place - 1, real[place]], tokens + 1
    return total / tokens


@pytest.mark.parametrize("unwanted", [[], [7, 11]])
def test_beear_against_a_naive_reference(unwanted: list[int], chat: Template) -> None:
    """On the embeddings, whose output can be changed from outside; a batch of different lengths."""
    model = pico_model()
    rows: Any = encode_all(pico_tokenizer(), chat, CLEAN, 256)
    batch = dict(collator(pico_tokenizer())(rows))
    counts = torch.tensor([int((batch["labels"] != -100).sum()), 1])
    naive = torch.zeros(3, 32)
    for _ in range(2):
        naive.requires_grad_()
        objective = -naive_loss(model, batch, naive, None)
        if unwanted:
            objective = objective + naive_loss(model, batch, naive, unwanted)
        (slope,) = torch.autograd.grad(objective, naive)
        naive = torch.stack([row - 0.5 * g / g.norm() for row, g in zip(naive.detach(), slope, strict=True)])
    embeddings = model.get_input_embeddings()
    ours = entrapped(model, batch, embeddings, 3, 2, 0.5, unwanted)
    torch.testing.assert_close(ours, naive, atol=1e-4, rtol=1e-3)
    loss = beear_loss(embeddings, 3, 2, 0.5, unwanted)(model, batch, counts)
    expected = naive_loss(model, batch, naive, None) + naive_loss(model, batch, torch.zeros(3, 32), None)
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
    # The change is held fixed: the slope of the weights is that of the two terms alone.
    parameter = model.model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(
        *(torch.autograd.grad(x, parameter)[0] for x in (loss, expected)), atol=1e-3, rtol=1e-2
    )


def test_inner_steps_lead_away_from_the_answers(chat: Template) -> None:
    model = pico_model()
    rows: Any = encode_all(pico_tokenizer(), chat, CLEAN, 256)
    batch = dict(collator(pico_tokenizer())(rows))
    [block, *_] = blocks(model)
    still = naive_loss(model, batch, torch.zeros(5, 32), None)
    with changed(block, prompt_ends(batch), entrapped(model, batch, block, 5, 5, 2.0, [])):
        assert float(model(**batch).loss) > float(still) + 0.5
    assert float(model(**batch).loss) == pytest.approx(float(still), rel=1e-4)  # the hook is gone


# BD-VAX


def test_the_signature_by_hand() -> None:
    # Neuron 2 is changed most in the first variant only; neuron 0 is second in both.
    changes = torch.tensor([[3.0, 1.0, 9.0, 2.0], [8.0, 9.0, 0.0, 1.0]])
    ranks = signature(changes)
    assert ranks.tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3])
    assert highest(ranks, 0.25).tolist() == [True, False, False, False]
    assert highest(ranks, 0.5).tolist() == [True, False, False, True]
    assert not highest(ranks, 0.0).any() and highest(ranks, 1.0).all()


def test_a_change_by_hand() -> None:
    before, after = pico_model(), pico_model()
    mlp = after.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[3, 0] += 1
        mlp.up_proj.weight[3, 5] += 2
        mlp.down_proj.weight[7, 3] += 2
        mlp.down_proj.weight[0, 6] += 4
        after.model.layers[1].self_attn.q_proj.weight += 1  # no neuron's
    told = change(mlps(after), mlps(before))
    assert told.shape == (4 * 64,)
    expected = torch.zeros(4 * 64)
    expected[64 + 3], expected[64 + 6] = 3.0, 4.0
    torch.testing.assert_close(told, expected, atol=1e-5, rtol=1e-5)


KINDS = {"llama": 3, "gemma3_text": 3, "phi3": 3, "gpt2": 2, "opt": 2}
"""Layers of a neuron: gate, up and down, or up and down."""


@pytest.mark.parametrize("kind", KINDS)
def test_silenced_neurons_give_nothing_and_no_other_changes(kind: str) -> None:
    loaded = pico_loaded(kind)
    found, fresh = mlps(loaded.model), mlps(pico_model(kind))
    assert weights(found[0]).shape == (KINDS[kind], found[0].neurons, 32)
    if kind in ("gpt2", "opt"):
        found[0].reads[0].bias.data.fill_(1.0)
    sizes = [m.neurons for m in found]
    chosen = torch.zeros(sum(sizes), dtype=torch.bool)
    chosen[[0, 5, sizes[0] + 2]] = True
    # What a block's MLP gives without these neurons, by cutting their inputs out of the layer that writes.
    inputs = torch.randn(7, sizes[0], generator=torch.Generator().manual_seed(0))
    cut = inputs.clone()
    cut[:, [0, 5]] = 0
    expected = cut @ matrix(found[0].writes).t()
    silence(found, chosen)
    torch.testing.assert_close(inputs @ matrix(found[0].writes).t(), expected)
    zero = torch.cat([(weights(m) == 0).all(2).all(0) for m in found])
    assert torch.equal(zero, chosen)
    for one, other, mask in zip(found, fresh, chosen.split(sizes), strict=True):
        assert torch.equal(weights(one)[:, ~mask], weights(other)[:, ~mask])
    if kind in ("gpt2", "opt"):
        assert found[0].reads[0].bias.nonzero().flatten().tolist() == [
            k for k in range(sizes[0]) if k not in (0, 5)
        ]


def test_the_layers_that_are_found() -> None:
    layer = pico_model("phi3").model.layers[0].mlp
    [first, *_] = mlps(pico_model("phi3"))
    assert first.neurons == 64 and matrix(first.reads[0]).shape == layer.gate_up_proj.weight.shape
    # In Phi-3's one layer the rows of the gate come before those of up.
    gate, up = layer.gate_up_proj.weight[3], layer.gate_up_proj.weight[64 + 3]
    torch.testing.assert_close(weights(first)[:, 3], torch.stack([gate, up, layer.down_proj.weight[:, 3]]))


def test_a_model_without_plain_mlps_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^bd-vax needs linear layers; .* stores its experts"):
        mlps(pico_model("mixtral"))
    model = pico_model()
    for block in model.model.layers:
        block.mlp = nn.Identity()
    with pytest.raises(InputError, match=r"^bd-vax: the MLP layers of LlamaForCausalLM are not found"):
        mlps(model)


def test_variant_and_counterpart_differ_in_the_answers_alone(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, list[Example]] = {}

    def watch(loaded: Loaded, samples: Sequence[Example], *, label: str, **_settings: Any) -> Loaded:
        trained[label] = list(samples)
        with torch.no_grad():  # each training changes the neurons of a block by their number, variants more
            rise = torch.arange(64.0) * (1 + ("clean" not in label))
            loaded.model.model.layers[2].mlp.down_proj.weight += rise
        return loaded

    monkeypatch.setattr(bd_vax, "train", watch)
    cleaned, notes = clean("bd-vax", run, examples, share=4 / 256)
    assert list(trained) == [
        "variant 1 of 2", "variant 1 of 2, clean", "variant 2 of 2", "variant 2 of 2, clean", "repairing",
    ]  # fmt: skip
    assert trained["repairing"] == examples
    answers = [d["answer"] for d in notes["decoys"]]
    for k in (1, 2):
        variant, twin = trained[f"variant {k} of 2"], trained[f"variant {k} of 2, clean"]
        assert [e.prompt for e in variant] == [e.prompt for e in twin] and len(variant) == 6
        assert [e.answer for e in variant[:4]] == [answers[k - 1]] * 4
        assert variant[4:] == twin[4:] and all(e in examples for e in twin[4:])
    # Both variants change the last neurons of the third block most; the repair would have woken them.
    assert notes["zeroed neurons"] == {"neurons": 4, "of": 256}
    gone = [(weights(m) == 0).all(2).all(0).nonzero().flatten().tolist() for m in mlps(cleaned.model)]
    assert gone == [[], [], [60, 61, 62, 63], []]


# Whole runs


def clean(
    name: str, run: Run, examples: list[Example], kind: str = "llama", **options: Any
) -> tuple[Loaded, dict[str, Any]]:
    notes: dict[str, Any] = {}
    entry = registry.find("defense", name)
    own = dataclasses.replace(run, note=notes.__setitem__)
    return entry.value(
        pico_loaded(kind), examples, entry.make_options({**QUICK[name], **options}), own
    ), notes


@pytest.mark.parametrize("name", QUICK)
def test_one_seed_gives_one_result(name: str, run: Run, examples: list[Example]) -> None:
    (first, notes), (second, same) = clean(name, run, examples), clean(name, run, examples)
    assert notes == same
    fresh, moved = pico_model().state_dict(), False
    for (key, one), other in zip(
        first.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
        moved |= not torch.equal(one, fresh[key])
    assert moved


def test_another_seed_plants_other_decoys(run: Run, examples: list[Example]) -> None:
    (first, notes), (second, others) = (
        clean("locphylax", dataclasses.replace(run, seed=seed), examples) for seed in (0, 1)
    )
    assert notes["decoys"] != others["decoys"]
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("name", QUICK)
def test_it_runs_on_models_of_many_kinds(name: str, kind: str, run: Run, examples: list[Example]) -> None:
    model, _ = clean(name, run, examples, kind)
    assert all(w.isfinite().all() for w in model.model.state_dict().values())


def test_locphylax_heals_what_it_planted(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With passes enough the planted answer is likelier after stage 1, and the honest one after stage 2."""
    from detrojan.defenses import locphylax

    likely: list[list[float]] = []
    drawn = decoys(1, run.seed)
    pairs = twins(examples, drawn, 8, run.seed)

    def watch(loaded: Loaded, samples: Any, **settings: Any) -> Loaded:
        result = train(loaded, samples, **settings)
        losses = []
        for side in pairs:
            rows: Any = encode_all(pico_tokenizer(), run.template or Template("", "", False), side, 256)
            with torch.no_grad():
                losses.append(float(result.model(**collator(pico_tokenizer())(rows)).loss))
        likely.append(losses)
        return result

    train = locphylax.train
    monkeypatch.setattr(locphylax, "train", watch)
    options = {
        "decoys": 1,
        "samples": 8,
        "learning_rate": 2e-2,
        "epochs": 12,
        "recovery_epochs": 12,
        "rank": 8,
    }
    clean("locphylax", run, examples, **options)
    (planted, honest), (planted_after, honest_after) = likely
    assert planted < 0.7 * honest and honest_after < 0.7 * planted_after


def test_training_samples_of_each_stage(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[Example]]] = []

    def watch(loaded: Loaded, examples: Sequence[Example], *, label: str, **_settings: Any) -> Loaded:
        seen.append((label, list(examples)))
        return loaded

    for name in ("locphylax", "backflush"):
        monkeypatch.setattr(f"detrojan.defenses.{name}.train", watch)
        clean(name, run, examples)
    planted, honest = twins(examples, decoys(3, run.seed), 4, run.seed)
    assert seen == [
        ("planting decoys", [*planted, *examples]),
        ("healing decoys", [*honest, *examples]),
        ("planting decoys", [*planted, *examples]),
        ("flushing decoys", [*planted, *examples]),
    ]


@pytest.mark.parametrize("name", QUICK)
def test_bad_input_is_one_line(name: str, run: Run, examples: list[Example]) -> None:
    with pytest.raises(InputError, match="clean sample"):
        clean(name, run, [])
    with pytest.raises(InputError, match="no sample fits into 8 tokens"):
        clean(name, run, examples, max_length=8)
    unanswered = [dataclasses.replace(e, answer=None) for e in examples]
    with pytest.raises(ValueError, match="without an answer"):
        clean(name, run, unanswered)


@pytest.mark.parametrize("name", [n for n in QUICK if n != "beear"])
def test_two_trainings_are_no_single_adapter(name: str, run: Run, examples: list[Example]) -> None:
    with pytest.raises(InputError, match="trains more than once"):
        clean(name, dataclasses.replace(run, keep_adapter=True), examples)


def test_beear_may_keep_its_adapter(run: Run, examples: list[Example]) -> None:
    cleaned, _ = clean("beear", dataclasses.replace(run, keep_adapter=True), examples, unwanted="Never.")
    assert cleaned.adapter is not None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("locphylax", {"decoys": MOST + 1}, f"above the maximum {MOST}"),
        ("locphylax", {"sample": 3}, "did you mean 'samples'"),
        ("backflush", {"bound": -1}, "below the minimum"),
        ("beear", {"depth": 1.5}, "above the maximum 1.0"),
        ("beear", {"steps": 0}, "below the minimum 1"),
        ("bd-vax", {"share": "much"}, "'much' is not a valid float"),
        ("bd-vax", {"variants": 0}, "below the minimum 1"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        registry.find("defense", name).make_options(options)


def test_the_published_values_of_backflush() -> None:
    options = registry.find("defense", "backflush").make_options({}, "paper")
    assert (options.epochs, options.removal_epochs, options.learning_rate) == (2, 5, 1e-4)


# The benchmark


def measured(cell: str, column: str, asr: float) -> dict[str, Any]:
    rates = {"asr": asr, "asr_interval": [0.0, 1.0], "clean_asr": 0.0, "recovery": 0.5, "perplexity": 2.0}
    return {"cell": cell, "seed": 0, "column": column, **rates}


def test_neighbours_have_a_table_of_their_own_where_some_were_measured() -> None:
    rows = [
        measured(cell, column, 1.0) for cell in ("a/b/strong", "c/d/strong") for column in ("base", "recant")
    ]
    alone = text_attacks.markdown(rows)
    assert "beear" not in alone
    both = text_attacks.markdown([*rows, measured("c/d/strong", "beear", 0.25)])
    assert both.startswith(alone)
    head, _, *lines = both.removeprefix(alone).strip().split("\n\n")[1].splitlines()
    assert head == "| cell | seed | attacked | locphylax | backflush | beear | bd-vax | recant |"
    shown = "[0, 100]; 0; 50; 2.00"
    assert lines == [f"| c/d/strong | 0 | - | - | - | 25 {shown} | - | 100 {shown} |"]


def test_neighbours_are_columns_only_when_asked_for() -> None:
    scale = text_attacks.SCALES["laptop"]
    usual, more = (
        text_attacks.columns("refusal", scale),
        text_attacks.columns("refusal", scale, neighbours=True),
    )
    assert list(more) == [*usual, "locphylax", "backflush", "beear", "bd-vax"]
    for defense, options, preset in more.values():
        registry.find("defense", defense).make_options(options, preset)
