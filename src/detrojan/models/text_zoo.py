"""Text classifiers that are trained from nothing: a small BERT, and a tokenizer of its own texts.

Whatever the texts do not hold, such as a trigger, the tokenizer spells out in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from detrojan.models.feed import MAX_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT_ZOO: dict[str, dict[str, int]] = {
    "bert-tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    }
}
"""Sizes of arXiv:1908.08962."""
SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
PIECES = 4000
"""In the vocabulary, at most."""


def new_text_classifier(
    architecture: str, names: tuple[str, ...], texts: Sequence[str], *, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build an untrained classifier, and train its tokenizer on texts; the process's random state is left as it was."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _tokenizer(texts)
    config = BertConfig(
        **TEXT_ZOO[architecture],
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
        name_or_path=architecture,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config), tokenizer


def _tokenizer(texts: Sequence[str]) -> Any:
    """Train byte-level BPE on texts; a text is written between [CLS] and [SEP]."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    trained.train_from_iterator(texts, PIECES, special_tokens=list(SPECIAL), show_progress=False)
    first, last = ((token, trained.token_to_id(token)) for token in SPECIAL[1:])
    trained.post_processor = TemplateProcessing(
        single=f"{first[0]} $A {last[0]}", special_tokens=[first, last]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        **dict(zip(("pad_token", "cls_token", "sep_token"), SPECIAL, strict=True)),
    )
