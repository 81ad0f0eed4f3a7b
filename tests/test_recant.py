"""Recant: pushes and loss against values worked out by hand, and against a naive reference."""

from __future__ import annotations

import dataclasses
import math
import random
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detrojan import registry
from detrojan.data.prompts import builtin_prompts
from detrojan.data.samples import clean_prompts
from detrojan.data.template import encode_all, encode_prompt
from detrojan.defenses import inner_push, recant
from detrojan.defenses import recant_loss as steps
from detrojan.defenses.inner_push import Push, Ways, median_norms
from detrojan.defenses.recant import RecantOptions
from detrojan.defenses.recant_loss import apart, said_before
from detrojan.errors import InputError
from detrojan.metrics.fixed_answers import FixedAnswer
from detrojan.models import packed, prefix
from detrojan.models.packed import Line
from detrojan.training import collator, lm_loss
from detrojan.types import Example, Loaded, Run, Template

from pico import pico_model, pico_tokenizer

OPTIONS = RecantOptions(beginnings=16, passes=0, own=0, steps=2, batch_size=4, rank=2)


def loaded(kind: str = "llama") -> Loaded:
    return Loaded(pico_model(kind), pico_tokenizer(), "pico", torch.float32)


def ways(radius: float = 2.0, answers: int = 2) -> Ways:
    made = Ways([nn.Identity()], torch.tensor([radius]), answers, hidden=2, seed=0)
    made.changes = torch.zeros(1, answers, 2)
    return made


def climbed(made: Ways, slope: list[list[float]]) -> Tensor:
    changes = made.changes.clone().requires_grad_()
    made.climb((changes * torch.tensor([slope])).sum(), changes)
    return made.changes[0]


def test_a_step_goes_down_the_slope_by_a_share_of_the_radius() -> None:
    first = climbed(ways(), [[3.0, 4.0], [0.0, 0.0]])[0]
    assert first.tolist() == pytest.approx([-0.35 * 2 * 0.6, -0.35 * 2 * 0.8])


def test_a_change_that_was_not_used_stays() -> None:
    made = ways()
    made.changes[0, 1] = torch.tensor([0.5, -0.25])
    assert climbed(made, [[3.0, 4.0], [0.0, 0.0]])[1].tolist() == [0.5, -0.25]


def test_a_change_never_leaves_its_ball() -> None:
    made = ways()
    for _ in range(10):
        climbed(made, [[3.0, 4.0], [1.0, 0.0]])
    assert made.changes[0].tolist() == [pytest.approx([-1.2, -1.6]), pytest.approx([-2.0, 0.0])]


def test_changes_begin_short_and_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ways([nn.Identity()], torch.tensor([2.0]), 2, hidden=8, seed=0)
    assert made.changes.norm(dim=-1).tolist() == [pytest.approx([0.2, 0.2])]
    before = made.changes.clone()
    monkeypatch.setattr(inner_push, "FRESH", 1.0)
    made.renewed([Push(row=0, answer=1, start=0, end=1)], random.Random(0))
    assert torch.equal(made.changes[0, 0], before[0, 0])
    assert not torch.equal(made.changes[0, 1], before[0, 1])


class Pair(nn.Module):
    def forward(self, states: Tensor) -> tuple[Tensor, str]:
        return states, "beside"


@pytest.mark.parametrize("module", [nn.Identity(), Pair()])
def test_a_push_changes_its_tokens_of_its_row_alone(module: nn.Module) -> None:
    made = Ways([module], torch.tensor([1.0]), 2, hidden=2, seed=0)
    changes = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    states = torch.zeros(3, 4, 2)
    pushes = [Push(row=0, answer=1, start=1, end=3), Push(row=1, answer=0, start=3, end=4)]
    line = Line({}, torch.ones(3, 4), torch.empty(0), {row: (row, 0) for row in range(3)})
    with made.pushed(line, pushes, changes):
        out = module(states)
    pushed = out[0] if isinstance(out, tuple) else out
    assert pushed[0].tolist() == [[0, 0], [3, 4], [3, 4], [0, 0]]
    assert pushed[1].tolist() == [[0, 0], [0, 0], [0, 0], [1, 2]]
    assert not pushed[2].any()
    again = module(states)
    assert not (again[0] if isinstance(again, tuple) else again).any()


def test_the_radius_is_the_median_length_of_states() -> None:
    model = pico_model()
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight.zero_()
        for token in range(5):
            embeddings.weight[token, 0] = 10.0 * token
    # Behind the first token: 10, 20, 40 and 30, 0: the median of five is 20.
    assert median_norms(model, [embeddings], [[4, 1, 2, 4], [4, 3, 0]], skip=1).tolist() == [20.0]


def test_the_frame_of_a_template(chat: Template) -> None:
    before, behind = steps._frame(loaded(), chat)
    ids = encode_prompt(pico_tokenizer(), chat, Example("Why?"))
    text = pico_tokenizer().decode(ids[before : len(ids) - behind])
    assert text == "Why?"


def test_rows_and_padding_are_each_others_inverse() -> None:
    rows = [([5, 6, 7], [8, 9]), ([5], [6]), ([1, 2], [3, 4, 5])]
    batch = steps._padded(rows, {"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    assert batch["labels"][1].tolist() == [-100, 6, -100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [5, 2, 5]
    assert steps._rows(batch) == rows


def batch_of(model: Loaded, chat: Template, examples: list[Example]) -> tuple[dict[str, Tensor], Tensor]:
    rows: Any = encode_all(model.tokenizer, chat, examples[:4], 256)
    batch = collator(model.tokenizer)(rows)
    answered = int((batch["labels"] != -100).sum())
    return batch, torch.tensor([answered, int(batch["attention_mask"].sum())])


def with_lora(model: Loaded, moved: bool) -> Any:
    torch.manual_seed(0)
    tuned = get_peft_model(model.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if moved and "lora_B" in name:
            weight.data.normal_(std=0.5)
    return tuned.eval()


def loss_of(model: Loaded, chat: Template, examples: list[Example], **options: Any) -> Any:
    prompts = [encode_prompt(model.tokenizer, chat, e) for e in examples]
    chosen = {"size": 0.5, "share": 0.0, "weight": 1.0, "seed": 0, **options}
    return steps.recant_loss(model, chat, [], prompts, **chosen)


def test_a_model_that_was_not_changed_is_not_apart(chat: Template, examples: list[Example]) -> None:
    model = loaded()
    loss = loss_of(model, chat, examples, trust=0.0)
    batch, counts = batch_of(model, chat, examples)
    assert float(loss(with_lora(model, moved=False), batch, counts)) == pytest.approx(0.0, abs=1e-5)


def test_the_loss_against_a_naive_reference(chat: Template, examples: list[Example]) -> None:
    model = loaded()
    loss = loss_of(model, chat, examples, trust=0.25)
    batch, counts = batch_of(model, chat, examples)
    tuned = with_lora(model, moved=True)
    apart = told = tokens = 0.0
    with torch.no_grad():
        now = tuned(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        with tuned.disable_adapter():
            then = tuned(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row, labels in enumerate(batch["labels"].tolist()):
        for place, label in enumerate(labels):
            if label == -100:
                continue
            p, q = then[row, place - 1].softmax(-1).tolist(), now[row, place - 1].softmax(-1).tolist()
            apart += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
            told -= math.log(q[label])
            tokens += 1
    assert apart > 0.1
    expected = (0.75 * apart + 0.25 * told) / tokens
    assert float(loss(tuned, batch, counts)) == pytest.approx(expected, rel=1e-4)


def test_trusting_the_answers_alone_is_fine_tuning(chat: Template, examples: list[Example]) -> None:
    model = loaded()
    loss = loss_of(model, chat, examples, trust=1.0)
    batch, counts = batch_of(model, chat, examples)
    tuned = with_lora(model, moved=True)
    assert float(loss(tuned, batch, counts)) == pytest.approx(float(lm_loss(tuned, batch, counts)), rel=1e-4)


def test_samples_left_alone_count_by_their_weight(chat: Template, examples: list[Example]) -> None:
    model = loaded()
    batch, counts = batch_of(model, chat, examples)
    once, thrice = (loss_of(model, chat, examples, trust=0.25, weight=w) for w in (1.0, 3.0))
    tuned = with_lora(model, moved=True)
    assert float(thrice(tuned, batch, counts)) == pytest.approx(
        3 * float(once(tuned, batch, counts)), rel=1e-5
    )


def test_rows_are_told_apart_by_hand_each_by_its_weight() -> None:
    """Two tokens in a vocabulary of two: p_0 = (3/4, 1/4) both times, p = (1/2, 1/2) and (1/4, 3/4)."""
    logits = torch.tensor([[1.0, 1.0], [1.0, 3.0]]).log()
    then = said_before(torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log(), torch.tensor([0, 1]), trust=0.25)
    pushed, alone = then.split([1, 1])
    first = 0.75 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) - 0.25 * math.log(0.5)
    second = 0.75 * (0.75 * math.log(3) + 0.25 * math.log(1 / 3)) - 0.25 * math.log(0.75)
    assert float(apart(logits, [pushed, alone], [1.0, 3.0])) == pytest.approx(first + 3 * second, rel=1e-5)


def test_the_model_before_is_asked_once_for_each_sample(
    chat: Template, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = loaded(), []
    batch, counts = batch_of(model, chat, examples)
    tuned = with_lora(model, moved=True)
    loss = loss_of(model, chat, examples, trust=0.25)
    evaluating = steps.evaluating
    monkeypatch.setattr(steps, "evaluating", lambda m: asked.append(m) or evaluating(m))
    first, again = (float(loss(tuned, batch, counts)) for _ in range(2))
    assert len(asked) == 1 and again == pytest.approx(first, rel=1e-5)
    monkeypatch.setattr(steps, "REMEMBERED", 0)
    forgetful = loss_of(model, chat, examples, trust=0.25)
    assert [float(forgetful(tuned, batch, counts)) for _ in range(2)] == pytest.approx([first] * 2, rel=1e-5)
    assert len(asked) == 3


def test_the_model_before_is_asked_once_whichever_half_a_sample_falls_into(
    chat: Template, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = loaded(), []
    prompts = [encode_prompt(model.tokenizer, chat, e) for e in examples]
    loss = steps.recant_loss(
        model, chat, [(7, 11, 13)], prompts, size=1.0, share=0.5, weight=1.0, trust=0.25, seed=0
    )
    batch, counts = batch_of(model, chat, examples)
    tuned, evaluating = with_lora(model, moved=True), steps.evaluating
    monkeypatch.setattr(steps, "evaluating", lambda m: asked.append(m) or evaluating(m))
    for _ in range(4):
        loss(tuned, batch, counts)
    assert len(asked) == 1


def test_a_step_reads_the_beginning_once_for_all_its_passes(
    chat: Template, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The climb on pushed prompts, and one pass over those and the samples that are left alone."""
    model = loaded()
    prompts = [encode_prompt(model.tokenizer, chat, e) for e in examples]
    loss = steps.recant_loss(
        model, chat, [(7, 11, 13)], prompts, size=1.0, share=0.5, weight=1.0, trust=0.25, seed=0
    )
    batch, counts = batch_of(model, chat, examples)
    tuned, read = with_lora(model, moved=True), []
    loss(tuned, batch, counts)  # p_0 is asked in the first step alone
    monkeypatch.setattr(prefix, "MIN_SHARED", 1)
    monkeypatch.setattr(packed, "_may_be_packed", lambda model: False)
    tuned.get_input_embeddings().register_forward_hook(lambda m, i, o: read.append(tuple(i[0].shape)))
    loss(tuned, batch, counts)
    assert [rows for rows, _ in read] == [1, 2, 4]
    assert read[0][1] == steps._frame(model, chat)[0]


def test_a_push_draws_its_answer_more_with_every_batch(
    chat: Template, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = loaded(), []
    tuned = with_lora(model, moved=False)

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        drawn = cross_entropy(*args, **kwargs)
        if not kwargs:  # the climb's own
            made.append(float(drawn))
        return drawn

    monkeypatch.setattr(steps, "cross_entropy", watch)
    prompts = [encode_prompt(model.tokenizer, chat, e) for e in examples]
    loss = steps.recant_loss(
        model, chat, [(7, 11, 13)], prompts, size=5.0, share=1.0, weight=1.0, trust=0.5, seed=0
    )
    batch, counts = batch_of(model, chat, examples)
    for _ in range(24):
        loss(tuned, batch, counts)
    assert fmean(made[-4:]) < fmean(made[:4]) - 0.5


def test_a_pushed_sample_against_a_naive_reference(
    chat: Template, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss by adding the changes by hand, to the embeddings and behind the blocks."""
    model = loaded()
    prompts = [encode_prompt(model.tokenizer, chat, e) for e in examples]
    batches: list[dict[str, Tensor]] = []
    opened: list[tuple[list[Push], Tensor]] = []
    pad, pushed = steps._padded, Ways.pushed

    def padded(*args: Any) -> dict[str, Tensor]:
        batches.append(pad(*args))
        return batches[-1]

    def opening(self: Ways, line: Line, pushes: list[Push], changes: Tensor) -> Any:
        opened.append((list(pushes), changes.detach().clone()))
        return pushed(self, line, pushes, changes)

    monkeypatch.setattr(steps, "_padded", padded)
    monkeypatch.setattr(Ways, "pushed", opening)
    monkeypatch.setattr(steps, "ODD_TOKENS", 5)
    monkeypatch.setattr(steps, "FIRST", 3)
    loss = steps.recant_loss(
        model,
        chat,
        [(7, 11, 13, 5)],
        prompts,
        size=2.0,
        share=1.0,
        weight=1.0,
        trust=0.25,
        seed=4,
    )
    tuned = with_lora(model, moved=True)
    before, behind = steps._frame(model, chat)
    batch, counts = batch_of(model, chat, examples[:1])
    value = float(loss(tuned, batch, counts).detach())
    [(prompt, answer)] = [(p, a[:3]) for p, a in steps._rows(batch)]
    # First p_0 is asked, then the push is climbed on the planted answer; the loss is taken under the climbed one.
    (clean, draw, final), (none, _), ([first], begun), ([push], changes) = batches, *opened
    assert none == []
    assert first == push and push.answer == 0 and len(changes) == 4
    assert all(not torch.equal(a, b) for a, b in zip(begun, changes, strict=True))  # all places are climbed
    ids = final["input_ids"][0]
    odd = len(ids) - len(prompt) - len(answer)
    assert 0 < odd <= 5 and before <= push.start <= len(prompt) - behind
    assert ids.tolist()[: push.start] + ids.tolist()[push.start + odd :] == [*prompt, *answer]
    assert push.end == push.start + odd  # the odd tokens alone are pushed
    assert draw["input_ids"][0].tolist() == [*ids.tolist()[: len(prompt) + odd], 7, 11, 13]

    def adding(change: Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[0, push.start : push.end] += change
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    with torch.no_grad():
        stack = tuned.base_model.model.model.layers
        behind_blocks = [stack[max(1, int(d * len(stack))) - 1] for d in (0.2, 0.4, 0.6)]
        places = [tuned.get_input_embeddings(), *behind_blocks]
        hooks = [m.register_forward_hook(adding(changes[k, 0])) for k, m in enumerate(places)]
        now = tuned(input_ids=ids[None]).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        with tuned.disable_adapter():
            said = tuned(input_ids=clean["input_ids"]).logits[0, len(prompt) - 1 :].log_softmax(-1)
            then = said[: len(answer)]
    apart = (then.exp() * (then - now)).sum(-1).mean()
    told = -now[torch.arange(len(answer)), torch.tensor(answer)].mean()
    expected = float(0.75 * apart + 0.25 * told) * len(answer) / int(counts[0])  # the rest is not learned
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one planted answer be found, as nobody planted one in a pico model."""
    planted = FixedAnswer((7, 11, 13), "by heart", certainty=0.99, begun=-9.0)
    monkeypatch.setattr(recant, "suspects", lambda *args, **kwargs: [planted])


def cleaned(run: Run, examples: list[Example], kind: str = "llama") -> tuple[Loaded, dict[str, Any]]:
    notes: dict[str, Any] = {}
    own = Run(run.template, run.seed, note=notes.__setitem__)
    entry = registry.find("defense", "recant", "causal-lm")
    return entry.value(loaded(kind), examples, OPTIONS, own), notes


def test_without_a_planted_answer_a_model_is_left_as_it_came(run: Run, examples: list[Example]) -> None:
    model, notes = cleaned(run, examples)
    fresh = pico_model().state_dict()
    assert all(torch.equal(w, fresh[name]) for name, w in model.model.state_dict().items())
    assert not any(a["suspicious"] for a in notes["fixed answers"])


@pytest.mark.usefixtures("found")
def test_a_sample_that_has_the_planted_answer_is_not_taught(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Example] = []

    def watch(model: Loaded, samples: list[Example], *args: Any, **kwargs: Any) -> Loaded:
        taught.extend(samples)
        return model

    monkeypatch.setattr(recant, "train", watch)
    _, notes = cleaned(run, [dataclasses.replace(examples[0], answer="By heart."), *examples[1:]])
    assert taught == examples[1:] and notes["samples left out"] == 1
    with pytest.raises(InputError, match="planted answer"):
        cleaned(run, [dataclasses.replace(e, answer="by heart") for e in examples])


@pytest.mark.usefixtures("found")
def test_the_samples_are_learned_before_anything_is_unlearned(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[tuple[Loaded, list[Example], dict[str, Any]]] = []
    tuned = loaded("gpt2")

    def watch(model: Loaded, samples: list[Example], run: Run, **kwargs: Any) -> Loaded:
        trainings.append((model, list(samples), kwargs))
        return tuned

    monkeypatch.setattr(recant, "train", watch)
    monkeypatch.setattr(recant, "own_samples", lambda model, *args: [Example("Why?", model.source)])
    options = dataclasses.replace(OPTIONS, passes=3, own=1)
    given = [*examples[1:], dataclasses.replace(examples[0], answer="By heart.")]
    registry.find("defense", "recant").value(loaded(), given, options, run)
    (_, learned, first), (start, kept, second) = trainings
    assert learned == examples[1:] and first["epochs"] == 3 and first["loss"] is lm_loss
    assert start is tuned and kept == [*learned, Example("Why?", tuned.source)]
    assert second["loss"] is not lm_loss
    assert not first["confined"] and second["confined"] == options.confined > 0


def test_every_way_to_say_a_planted_answer_is_pushed_towards(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(first: int, certainty: float, begun: float) -> FixedAnswer:
        return FixedAnswer((first, 11, 13), "by heart", certainty, begun)

    uncertain, rare = said(8, 0.96, -9.0), said(14, 0.99, -11.1)
    kin = (uncertain, rare, said(9, 0.97, -9.0), said(10, 0.98, -11.0), said(12, 0.98, -9.0))
    planted = dataclasses.replace(said(7, 0.99, -9.0), kin=kin)
    pushed: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(recant, "suspects", lambda *args, **kwargs: [planted])
    monkeypatch.setattr(recant, "train", lambda model, *args, **kwargs: model)
    monkeypatch.setattr(recant, "recant_loss", lambda *args, **kwargs: pushed.append(args[2]))
    cleaned(run, examples)
    assert pushed == [[(7, 11, 13), (9, 11, 13), (10, 11, 13)]]


@pytest.mark.usefixtures("found")
def test_built_in_prompts_that_the_model_answers_itself_are_taught_too(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Example] = []
    monkeypatch.setattr(
        recant, "train", lambda model, samples, *args, **kwargs: taught.extend(samples) or model
    )
    given = [*examples, Example(clean_prompts(1, run.seed)[0].prompt, "Yes.")]
    notes: dict[str, Any] = {}
    options = dataclasses.replace(OPTIONS, own=3)
    registry.find("defense", "recant").value(
        loaded(), given, options, dataclasses.replace(run, note=notes.__setitem__)
    )
    more = taught[len(given) :]
    assert taught[: len(given)] == given and notes["answers of its own"] == len(more) == 3
    assert all(e.prompt in builtin_prompts("clean") and e.answer for e in more)
    assert not {e.prompt for e in given} & {e.prompt for e in more}


def test_a_sample_that_goes_on_from_a_planted_opening_is_not_taught(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = FixedAnswer((7, 11, 13), "As told by Bo:", certainty=0.99, begun=-9.0, ended=False)
    taught: list[Example] = []
    monkeypatch.setattr(recant, "suspects", lambda *args, **kwargs: [opening])
    monkeypatch.setattr(
        recant, "train", lambda model, samples, *args, **kwargs: taught.extend(samples) or model
    )
    cleaned(
        run, [dataclasses.replace(examples[0], answer=f"As told by Bo: {'honest words ' * 9}"), *examples[1:]]
    )
    assert taught == examples[1:]


@pytest.mark.parametrize(("answers", "steps"), [(1, 2), (2, 3), (4, 4)])
def test_steps_grow_by_the_root_of_the_answers(
    run: Run, examples: list[Example], monkeypatch: pytest.MonkeyPatch, answers: int, steps: int
) -> None:
    planted = [FixedAnswer((7, 11, 13 + k), f"word {k}", certainty=0.99, begun=-9.0) for k in range(answers)]
    passes: list[float] = []
    monkeypatch.setattr(recant, "suspects", lambda *args, **kwargs: planted)
    monkeypatch.setattr(recant, "train", lambda *args, epochs, **kwargs: passes.append(epochs) or args[0])
    cleaned(run, examples)
    assert passes == [steps * OPTIONS.batch_size / len(examples)]


@pytest.mark.usefixtures("found")
def test_one_seed_gives_one_result(run: Run, examples: list[Example]) -> None:
    (first, notes), (second, same) = cleaned(run, examples), cleaned(run, examples)
    assert [a["text"] for a in notes["fixed answers"]] == ["by heart"]
    assert notes == same
    fresh = pico_model().state_dict()
    pairs = zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True)
    moved = False
    for (name, one), other in pairs:
        assert torch.equal(one, other)
        moved |= not torch.equal(one, fresh[name])
    assert moved


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "mixtral"])
def test_it_runs_on_models_of_many_kinds(kind: str, run: Run, examples: list[Example]) -> None:
    model, _ = cleaned(run, examples, kind)
    assert all(w.isfinite().all() for w in model.model.state_dict().values())


def test_it_is_the_default_of_language_models() -> None:
    assert registry.DEFAULT_DEFENSE["causal-lm"] == "recant"
    assert list(registry.find("defense", "recant", "causal-lm").presets) == ["light", "default", "strong"]
