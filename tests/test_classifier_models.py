"""The doors of classifiers: what comes in is found, fed and never run; what goes out loads and answers alike."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    EfficientNetImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

import detrojan
from detrojan.errors import InputError
from detrojan.models.classifier import load_classifier, logits, predict, to_rows
from detrojan.models.feed import longest, normalise, pixels
from detrojan.models.kind import CAUSAL_LM, CLASSIFIER, task_of
from detrojan.models.preact_resnet import PreActResNet
from detrojan.models.save import save_classifier
from detrojan.models.state_dict import NORMALISED
from detrojan.models.zoo import ZooConfig, ZooForImageClassification, build, new_classifier
from detrojan.types import Classifier, Labelled

from pico import pico_model, pico_tokenizer
from pico_classifiers import (
    IMAGE_KINDS,
    MEAN,
    NAMES,
    STD,
    TEXT_KINDS,
    as_pil,
    image_processor,
    opinions,
    pico_image_model,
    pico_text_model,
    pictures,
    save_image_model,
    save_text_model,
    settled,
)

HEADS = {
    "resnet": "classifier.1",
    "vit": "classifier",
    "convnext": "classifier",
    "bert": "classifier",
    "distilbert": "classifier",
    "roberta": "classifier.out_proj",
    "gpt2": "score",
}


def answers(model: Any, images: Tensor) -> Tensor:
    """Return the logits of a model for pixel values."""
    with torch.no_grad():
        out = model.float().eval()(images)
    return getattr(out, "logits", out)


def ours(classifier: Classifier, inputs: Any) -> Tensor:
    """Return the logits of samples that went the whole way: processor, pixels, normalisation, model."""
    rows = to_rows(classifier, Labelled(inputs, torch.zeros(len(inputs), dtype=torch.int64)))
    with torch.no_grad():
        return logits(classifier, rows.inputs)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def saved(classifier: Classifier, directory: Path) -> Path:
    directory.mkdir()
    save_classifier(classifier, directory)
    return directory


def edited(directory: Path, name: str, **changes: Any) -> Path:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def fails(fragment: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=fragment) as caught:
        load_classifier(*arguments, **options)
    assert "\n" not in str(caught.value)


# Images: directories of transformers and timm


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_classifier_goes_in_and_out(kind: str, tmp_path: Path) -> None:
    source = save_image_model(tmp_path / "in", kind)
    classifier = load_classifier(source)
    assert (classifier.task, classifier.head, classifier.names) == ("image", HEADS[kind], NAMES)
    assert (classifier.shape, classifier.mean, classifier.std) == ((3, 32, 32), MEAN, STD)
    assert classifier.files == (source / "model.safetensors",) and not classifier.model.training
    processed = image_processor(kind)(as_pil(pictures()), return_tensors="pt")["pixel_values"]
    expected = answers(pico_image_model(kind), processed)
    assert expected.std() > 1e-4
    same(answers(classifier.model, processed), expected)
    same(ours(classifier, as_pil(pictures())), expected)
    out = saved(classifier, tmp_path / "out")
    same(answers(AutoModelForImageClassification.from_pretrained(out), processed), expected)
    assert AutoImageProcessor.from_pretrained(out).to_dict() == image_processor(kind).to_dict()
    assert (out / "preprocessor_config.json").read_bytes() == (
        source / "preprocessor_config.json"
    ).read_bytes()
    assert load_classifier(out).names == NAMES
    assert not list(out.glob("*.bin"))


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_normalisation_is_undone_exactly(kind: str, tmp_path: Path) -> None:
    """Bytes that the processor need not resize come back as they were; others as it resized and cropped them."""
    classifier = load_classifier(save_image_model(tmp_path / "in", kind))
    noise = torch.randint(
        0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(pixels(classifier, Labelled(noise, torch.zeros(3))), noise)
    if kind == "vit":
        assert torch.equal(pixels(classifier, Labelled(as_pil(noise), torch.zeros(3))), noise)
    for images in (as_pil(noise), as_pil(pictures(3, 40, 56)), pictures(3, 40, 40)):
        found = pixels(classifier, Labelled(images, torch.zeros(3)))
        assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 3, 32, 32))
        given = as_pil(images) if isinstance(images, Tensor) else images
        processed = image_processor(kind)(given, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(normalise(classifier, found), processed, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        # Divides by the deviation twice, and centres the pixels around nothing.
        (
            EfficientNetImageProcessor(
                size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3, include_top=True
            ),
            (0.5,) * 3,
            (0.25,) * 3,
        ),
        (ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False), (0.0,) * 3, (1.0,) * 3),
        (
            ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, rescale_factor=1 / 127.5),
            (0.0,) * 3,
            (0.5,) * 3,
        ),
        (ViTImageProcessor(do_resize=False, image_mean=0.5, image_std=0.5), (0.5,) * 3, (0.5,) * 3),
    ],
    ids=["twice", "none", "rescaled", "not resized"],
)
def test_normalisation_is_seen_not_believed(
    processor: Any, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    pico_image_model("vit").save_pretrained(tmp_path / "in")
    processor.save_pretrained(tmp_path / "in")
    classifier = load_classifier(tmp_path / "in")
    assert classifier.shape == (3, 32, 32)
    assert classifier.mean == pytest.approx(mean, abs=1e-6) and classifier.std == pytest.approx(std, abs=1e-6)
    noise = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = pixels(classifier, Labelled(as_pil(noise), torch.zeros(2)))
    assert torch.equal(found, noise)


def test_gray_images(tmp_path: Path) -> None:
    pico_image_model("vit", num_channels=1).save_pretrained(tmp_path / "in")
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1], image_std=[0.3]).save_pretrained(
        tmp_path / "in"
    )
    classifier = load_classifier(tmp_path / "in")
    assert (classifier.shape, classifier.mean, classifier.std) == ((1, 32, 32), (0.1,), (0.3,))
    images = pictures(channels=1)
    assert torch.equal(pixels(classifier, Labelled(as_pil(images), torch.zeros(4))), images)


def test_without_a_processor_images_are_taken_to_be_centred(tmp_path: Path) -> None:
    pico_image_model("vit").save_pretrained(tmp_path / "in")
    classifier = load_classifier(tmp_path / "in")
    assert (classifier.shape, classifier.mean, classifier.std) == ((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    assert pixels(classifier, Labelled(as_pil(pictures(2, 40, 56)), torch.zeros(2))).shape == (2, 3, 32, 32)
    pico_image_model("resnet").save_pretrained(tmp_path / "resnet")
    fails("neither preprocessor_config.json nor image_size", tmp_path / "resnet")


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_bfloat16_stays_bfloat16(kind: str, tmp_path: Path) -> None:
    source = save_image_model(tmp_path / "in", kind, torch.bfloat16)
    classifier = load_classifier(source, device="cpu")
    assert classifier.dtype == torch.bfloat16
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
    before = ours(classifier, pictures())
    out = saved(classifier, tmp_path / "out")
    weights, original = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.bfloat16}
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[k], original[k]) for k in weights)
    assert AutoModelForImageClassification.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    same(ours(classifier, pictures()), before)  # saving changed nothing in memory
    same(ours(load_classifier(out, device="cpu"), pictures()), before)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_hub_format(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=3)).eval()
    extra = {"label_names": list(NAMES)} if name == "test_vit" else {}
    save_for_hf(model, str(tmp_path / "in"), model_config=extra, safe_serialization=True)
    assert task_of(tmp_path / "in") == CLASSIFIER
    classifier = load_classifier(tmp_path / "in")
    cfg = model.pretrained_cfg
    assert (classifier.shape, classifier.mean, classifier.std) == (cfg["input_size"], cfg["mean"], cfg["std"])
    assert classifier.head.endswith(cfg["classifier"]) and classifier.classes == 3
    assert not extra or classifier.names == NAMES
    images = pictures(2, *cfg["input_size"][1:])
    expected = answers(model, normalise(classifier, images))
    same(ours(classifier, images), expected)
    small = as_pil(pictures(2, 40, 56))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(cfg))
    same_as_timm = normalise(classifier, pixels(classifier, Labelled(small, torch.zeros(2))))
    torch.testing.assert_close(same_as_timm, torch.stack([transform(i) for i in small]), atol=1e-6, rtol=1e-6)
    out = saved(classifier, tmp_path / "out")
    same(
        answers(AutoModelForImageClassification.from_pretrained(out), normalise(classifier, images)), expected
    )
    again = load_classifier(out)
    assert (again.shape, again.mean, again.names) == (classifier.shape, classifier.mean, classifier.names)
    same(ours(again, small), ours(classifier, small))


def test_timm_wrapper_of_transformers(tmp_path: Path) -> None:
    config = TimmWrapperConfig(
        architecture="test_resnet",
        id2label=dict(enumerate(NAMES)),
        pretrained_cfg=timm.get_pretrained_cfg("test_resnet").to_dict(),
    )
    model = settled(TimmWrapperForImageClassification(config)).eval()
    model.save_pretrained(tmp_path / "in")
    classifier = load_classifier(tmp_path / "in")
    assert (classifier.head, classifier.names) == ("timm_model.fc", NAMES)
    images = pictures(2, *(classifier.shape or ())[1:])
    expected = answers(model, normalise(classifier, images))
    same(ours(classifier, images), expected)
    same(ours(load_classifier(saved(classifier, tmp_path / "out")), images), expected)


# The zoo, and bare state dicts


def tiny(architecture: str, channels: int = 3, edge: int = 16) -> ZooForImageClassification:
    model = new_classifier(architecture, NAMES, (channels, edge, edge), width=4)
    if architecture == "vit-mini":  # its head starts at zero
        nn.init.normal_(model.module.head.weight, std=0.2)
    return settled(model).eval()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("architecture", "edge"),
    [
        ("preact-resnet18", 16),
        ("preact-resnet8", 16),
        ("vit-mini", 16),
        ("vit-mini", 8),
        ("timm/test_vit_relpos", 160),
        ("timm/test_byobnet", 64),
    ],
)
def test_zoo_goes_out_and_in(architecture: str, edge: int, tmp_path: Path) -> None:
    """The relative positions of test_vit_relpos are computed buffers, which no checkpoint holds."""
    model = tiny(architecture, edge=edge)
    classifier = load_classifier(model)
    assert classifier.model is not model and classifier.names == NAMES
    out = saved(classifier, tmp_path / "out")
    images = normalise(classifier, pictures(2, edge, edge))
    expected = answers(model, images)
    assert expected.std() > 1e-6
    same(answers(AutoModelForImageClassification.from_pretrained(out), images), expected)
    again = load_classifier(out)
    assert (again.head, again.names, again.shape) == (classifier.head, NAMES, (3, edge, edge))
    same(answers(again.model, images), expected)


@pytest.mark.parametrize("architecture", ["preact-resnet8", "vit-mini"])
def test_new_classifier_is_drawn_by_its_seed_alone(architecture: str) -> None:
    state = torch.random.get_rng_state()
    models = [new_classifier(architecture, NAMES, (1, 8, 8), seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [nn.utils.parameters_to_vector(m.parameters()) for m in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("channels", "edge", "patches"), [(1, 28, 49), (3, 32, 64), (4, 12, 9), (1, 8, 16), (2, 6, 9)]
)
def test_vit_mini_takes_small_images(channels: int, edge: int, patches: int) -> None:
    model = tiny("vit-mini", channels, edge)
    assert model.module.pos_embed.shape == (1, patches, 4)
    classifier = load_classifier(model)
    assert (classifier.head, classifier.shape) == ("module.head", (channels, edge, edge))
    seen = ours(classifier, pictures(2, edge, edge, channels))
    assert seen.shape == (2, len(NAMES)) and not torch.equal(seen[0], seen[1])


def test_vit_mini_is_as_wide_as_it_is_asked_to_be() -> None:
    for width, heads in ((None, 4), (6, 2), (7, 1)):
        module = new_classifier("vit-mini", NAMES, (1, 8, 8), width=width).module
        assert (module.embed_dim, len(module.blocks)) == (width or 64, 6)
        assert {block.attn.num_heads for block in module.blocks} == {heads}


def test_new_vit_mini_is_trained_and_saved(tmp_path: Path) -> None:
    quick = {"epochs": 6, "learning_rate": 0.05, "batch_size": 32, "poison_rate": 0.0}
    made = detrojan.attack(
        "new:vit-mini", trigger="badnets", data="digits", out=tmp_path / "out", samples=600, **quick
    )
    assert made.after.accuracy > made.before.accuracy + 0.2
    again = detrojan.evaluate(tmp_path / "out", data="digits", attack=tmp_path / "out")
    assert again.accuracy > 0.3
    assert load_classifier(tmp_path / "out").head == "module.head"


def test_vit_mini_needs_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"vit-mini: needs timm \(pip install timm\)"):
        new_classifier("vit-mini", NAMES, (1, 8, 8))


def backdoorbench(path: Path, model: nn.Module, **changes: Any) -> Path:
    """Write what BackdoorBench writes: the state dict among facts, and arrays of NumPy."""
    content = {
        "model_name": "preactresnet18",
        "num_classes": 3,
        "model": model.state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": {"original_index": np.arange(4), "poison_indicator": np.zeros(4, dtype=np.uint8)},
        "bd_test": {"x": torch.zeros(2), "y": np.float64(1.0)},
    }
    torch.save({**content, **changes}, path)
    return path


def test_result_of_backdoorbench(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = settled(PreActResNet(3, width=4)).eval()
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.bn2.running_var", "linear.bias"} <= set(
        module.state_dict()
    )
    path = backdoorbench(tmp_path / "attack_result.pt", module)
    assert task_of(path) == CLASSIFIER
    classifier = load_classifier(path)
    assert (classifier.head, classifier.shape) == ("module.linear", (3, 32, 32))
    assert (classifier.mean, classifier.std) == NORMALISED["cifar10"]
    assert (classifier.names, classifier.files) == (("0", "1", "2"), (path,))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALISED["cifar10"])
    expected = answers(module, (pictures() / 255 - mean) / std)
    same(ours(classifier, pictures()), expected)
    same(ours(load_classifier(saved(classifier, tmp_path / "out")), pictures()), expected)


@pytest.mark.parametrize("form", ["plain", "wrapped", "state_dict", "safetensors", "half"])
def test_bare_state_dict(form: str, tmp_path: Path) -> None:
    module = settled(PreActResNet(3, width=4, blocks=(1, 2))).eval()
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pth")
    state = module.to(torch.bfloat16 if form == "half" else torch.float32).state_dict()
    if form == "wrapped":
        state = {f"module.{k}": v for k, v in state.items()}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "state_dict" else state, path)
    (tmp_path / "preprocessor_config.json").write_text("{}")  # of something else in the same folder
    classifier = load_classifier(path, device="cpu")
    assert classifier.dtype == (torch.bfloat16 if form == "half" else torch.float32)
    same(ours(classifier, pictures()), answers(module, pictures() / 255 * 2 - 1))
    out = saved(classifier, tmp_path / "out")
    assert not (out / "preprocessor_config.json").exists()
    assert load_file(out / "model.safetensors")["module.conv1.weight"].dtype == classifier.dtype
    same(ours(load_classifier(out, device="cpu"), pictures()), ours(classifier, pictures()))


def test_state_dict_of_timm(tmp_path: Path) -> None:
    module = settled(timm.create_model("test_resnet", num_classes=3)).eval()
    torch.save(module.state_dict(), tmp_path / "m.pth")
    fails("cannot be told; name it with --architecture", tmp_path / "m.pth")
    classifier = load_classifier(tmp_path / "m.pth", architecture="timm/test_resnet")
    assert (classifier.head, classifier.shape) == ("module.fc", (3, 160, 160))
    same(ours(classifier, pictures(2, 160, 160)), answers(module, pictures(2, 160, 160) / 255 * 2 - 1))
    classifier = load_classifier(tmp_path / "m.pth", architecture="timm/test_resnet@32")
    same(ours(classifier, pictures()), answers(module, pictures() / 255 * 2 - 1))
    fails("write NAME or NAME@SIZE", tmp_path / "m.pth", architecture="timm/test_resnet@big")
    fails("does not fit timm/test_convnext", tmp_path / "m.pth", architecture="timm/test_convnext")
    fails("Unknown model", tmp_path / "m.pth", architecture="timm/resnet_of_mine")
    fails(
        "unknown architecture 'vgg19_bn'; did you mean 'vgg19-bn'",
        tmp_path / "m.pth",
        architecture="vgg19_bn",
    )


@pytest.fixture
def small_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink torchvision's VGG19-BN and ViT-B/16, their parameters named as in the full ones."""
    from torchvision.models import VisionTransformer, vgg

    class Small(vgg.VGG):
        def __init__(self, num_classes: int) -> None:
            nn.Module.__init__(self)
            layers = [v if v == "M" else 4 for v in vgg.cfgs["E"]]
            self.features = vgg.make_layers(layers, batch_norm=True)
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            hidden = [nn.Linear(4 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout()]
            self.classifier = nn.Sequential(*hidden, nn.Linear(8, num_classes))

    def vit_b_16(num_classes: int, image_size: int) -> VisionTransformer:
        return VisionTransformer(image_size, 16, 2, 2, 16, 32, num_classes=num_classes)

    monkeypatch.setattr("torchvision.models.vgg19_bn", Small)
    monkeypatch.setattr("torchvision.models.vit_b_16", vit_b_16)


def from_torchvision(architecture: str, edge: int) -> nn.Module:
    torch.manual_seed(0)
    config = ZooConfig(architecture, image_size=edge, num_labels=3)
    module = settled(build(config)).eval()
    for parameter in module.parameters():  # the head of a ViT starts at zero
        nn.init.normal_(parameter, std=0.2)
    return module


def check_torchvision(architecture: str, edge: int, head: str, tmp_path: Path) -> None:
    module = from_torchvision(architecture, edge)
    torch.save(module.state_dict(), tmp_path / "m.pth")
    classifier = load_classifier(tmp_path / "m.pth")
    assert (classifier.head, classifier.shape) == (head, (3, edge, edge))
    expected = answers(module, pictures(2, edge, edge) / 255 * 2 - 1)
    same(ours(classifier, pictures(2, edge, edge)), expected)
    out = saved(classifier, tmp_path / "out")
    same(ours(load_classifier(out), pictures(2, edge, edge)), expected)


@pytest.mark.parametrize(
    ("architecture", "edge", "head"),
    [("vgg19-bn", 224, "module.classifier.6"), ("vit-b-16", 32, "module.heads.head")],
)
def test_state_dict_of_torchvision(
    architecture: str, edge: int, head: str, small_torchvision: None, tmp_path: Path
) -> None:
    check_torchvision(architecture, edge, head, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "head"), [("vgg19-bn", "module.classifier.6"), ("vit-b-16", "module.heads.head")]
)
def test_state_dict_of_torchvision_in_full(architecture: str, head: str, tmp_path: Path) -> None:
    check_torchvision(architecture, 224, head, tmp_path)


def test_vgg_of_backdoorbench(small_torchvision: None, tmp_path: Path) -> None:
    module = from_torchvision("vgg19-bn", 32)
    path = backdoorbench(tmp_path / "a.pt", module, model_name="vgg19_bn", clean_data="gtsrb")
    classifier = load_classifier(path)
    assert (classifier.shape, classifier.mean, classifier.std) == ((3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    same(ours(classifier, pictures()), answers(module, pictures() / 255))
    torch.save(module.state_dict(), tmp_path / "m.pth")
    assert load_classifier(tmp_path / "m.pth", architecture="vgg19-bn@32").shape == (3, 32, 32)


def test_vit_of_backdoorbench_resizes_itself(small_torchvision: None, tmp_path: Path) -> None:
    """BackdoorBench puts a layer before its ViT that brings images to 224; so its names begin with `1.`."""
    from torchvision.transforms import Resize

    module = nn.Sequential(Resize((64, 64)), from_torchvision("vit-b-16", 64)).eval()
    path = backdoorbench(tmp_path / "a.pt", module, model_name="vit_b_16")
    classifier = load_classifier(path)
    assert (classifier.shape, classifier.head) == ((3, 32, 32), "module.heads.head")
    expected = answers(module, normalise(classifier, pictures()))
    same(ours(classifier, pictures()), expected)
    same(ours(load_classifier(saved(classifier, tmp_path / "out")), pictures()), expected)


# Texts


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_classifier_goes_in_and_out(kind: str, tmp_path: Path) -> None:
    source = save_text_model(tmp_path / "in", kind)
    classifier = load_classifier(source)
    assert (classifier.task, classifier.head, classifier.names) == ("text", HEADS[kind], ("bad", "good"))
    texts = opinions(6).inputs
    model, tokenizer = pico_text_model(kind), pico_tokenizer()
    with torch.no_grad():
        single = torch.cat(
            [model(**tokenizer(t, return_tensors="pt", return_token_type_ids=False)).logits for t in texts]
        )
    assert single.std(dim=0).min() > 1e-3
    torch.testing.assert_close(
        ours(classifier, texts), single, atol=1e-5, rtol=1e-5
    )  # padding changes nothing
    out = saved(classifier, tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(out)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()
    same(ours(load_classifier(out), texts), ours(classifier, texts))


def test_left_padding_of_a_tokenizer_is_not_used(tmp_path: Path) -> None:
    """GPT-2 counts positions from the first token, so padding before the text would shift it."""
    source = save_text_model(tmp_path / "in", "gpt2")
    straight = ours(load_classifier(source), opinions(4).inputs)
    edited(source, "tokenizer_config.json", padding_side="left")
    same(ours(load_classifier(source), opinions(4).inputs), straight)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 64), ("roberta", 63), ("gpt2", 64)])
def test_long_texts_are_cut(kind: str, limit: int, tmp_path: Path) -> None:
    """RoBERTa counts its positions on from the padding token, which takes some of them away."""
    classifier = load_classifier(save_text_model(tmp_path / "in", kind))
    assert longest(classifier.model) == limit
    assert ours(classifier, ["quick brown " * 200, "fox"]).shape == (2, 2)


def test_text_classifier_in_memory() -> None:
    model = pico_text_model()
    classifier = load_classifier(model, tokenizer=pico_tokenizer())
    assert (classifier.task, classifier.head, classifier.model is model) == ("text", "classifier", False)
    fails("of texts, its tokenizer", model)


# Modules, and where the head is


class TwoHeads(nn.Module):
    """Averages two heads, as a distilled DeiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1)).relu()
        return (self.one(hidden) + self.two(hidden)) / 2


class Oddly(nn.Module):
    """Has a `config` that is not transformers', a linear layer after the head, and computes in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"anything": 1}
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
        self.last, self.unused, self.side = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        scores = self.last(self.body(images))
        self.side(scores)
        return scores


def test_module_is_copied_and_its_head_found() -> None:
    module = Oddly().train()
    module.body.eval()
    before = copy.deepcopy(module.state_dict())
    sample = torch.rand(4, 3, 2, 2)
    classifier = load_classifier(module, sample=sample)
    assert (classifier.head, classifier.names, classifier.source) == ("last", ("0", "1", "2"), "Oddly")
    assert (classifier.dtype, classifier.shape, classifier.normalises) == (torch.float64, (3, 2, 2), False)
    assert classifier.model is not module and module.training and not module.body.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    same(logits(classifier, {"pixel_values": sample}), module(sample.double()).float())
    assert not logits(classifier, {"pixel_values": sample}).is_inference()


class Mixed(nn.Module):
    """Holds its body in double precision and its head in single."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 4).double(), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.flatten(1).double()).float())


def test_model_of_transformers_in_memory() -> None:
    """It is given pixel values as it takes them; its classes keep their names."""
    model, values = pico_image_model("vit").train(), torch.randn(2, 3, 32, 32)
    classifier = load_classifier(model, sample=values)
    assert (classifier.head, classifier.names, classifier.normalises) == ("classifier", NAMES, False)
    assert model.training
    classifier.model.eval()
    same(ours(classifier, values), answers(model, values))
    fails("a regression head", pico_image_model("vit", ("score",)), sample=values)


def test_module_goes_out(tmp_path: Path) -> None:
    """A plain module has no configuration: its state dict is written, each tensor in its own type."""
    module = Mixed()
    classifier = load_classifier(module, sample=torch.rand(2, 3, 2, 2))
    weights = load_file(saved(classifier, tmp_path / "out") / "model.safetensors")
    assert weights.keys() == module.state_dict().keys()
    assert all(
        v.dtype == weights[k].dtype and torch.equal(v, weights[k]) for k, v in module.state_dict().items()
    )


def test_ambiguous_head() -> None:
    sample = torch.rand(2, 3, 2, 2)
    fails(
        "several layers could be the classification head; choose one: --head one or two",
        TwoHeads(),
        sample=sample,
    )
    assert load_classifier(TwoHeads(), sample=sample, head="two").head == "two"
    fails(
        "--head three: no linear layer of that name; the last ones are body, one, two",
        TwoHeads(),
        sample=sample,
        head="three",
    )
    fails(
        "--head body: has 8 rows, but the model tells 3 classes apart", TwoHeads(), sample=sample, head="body"
    )


def test_ambiguous_checkpoint(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = DeiTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
    torch.manual_seed(0)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "deit")
    assert task_of(tmp_path / "deit") == CLASSIFIER
    fails("deit: several layers .*--head cls_classifier or distillation_classifier", tmp_path / "deit")
    assert load_classifier(tmp_path / "deit", head="cls_classifier").head == "cls_classifier"


@pytest.mark.parametrize(
    ("module", "sample", "fragment"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 3, 2), nn.Flatten()),
            torch.rand(2, 3, 2, 2),
            "no linear layer writes the logits",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 3)),
            torch.rand(2, 3, 2, 2),
            "cannot be run on a sample of shape 3 x 2 x 2",
        ),
        (nn.Linear(2, 3), torch.rand(2, 3, 2, 2), "not a table of logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), torch.rand(2, 3, 2, 2), "its output has 1"),
        (nn.Flatten(), torch.rand(2, 3, 2, 2), "no parameters"),
        (nn.Linear(2, 3), torch.rand(2, 2), r"expected \(n, channels, height, width\)"),
        (nn.Linear(2, 3), torch.rand(0, 3, 2, 2), r"expected \(n, channels, height, width\)"),
        (nn.Linear(2, 3), None, "needs its data as"),
    ],
)
def test_modules_that_are_refused(module: nn.Module, sample: Tensor | None, fragment: str) -> None:
    fails(fragment, module, sample=sample)


# What is refused


class Evil:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("where", ["alone", "beside the weights", "bare pickle", "in an array"])
def test_pickle_that_would_run_code(where: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "m.pt", tmp_path / "it-ran"
    if where == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif where == "in an array":
        array = np.empty(1, dtype=object)
        array[0] = Evil(mark)
        torch.save({"model": PreActResNet(3, width=4).state_dict(), "bd_train": array}, path)
    else:
        state = PreActResNet(3, width=4).state_dict()
        torch.save(Evil(mark) if where == "alone" else {**state, "evil": Evil(mark)}, path)
    fails(r"m\.pt: not a state dict that can be read without running code", path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"a": 1}, "not a state dict"),
        ({}, "not a state dict"),
        ({"model": {"a": 1}}, "not a state dict"),
        ({"state_dict": [1]}, "not a state dict"),
        ({"weight": torch.zeros(2)}, "cannot be told; name it with --architecture"),
        ({"linear.weight": torch.zeros(3, 4)}, "does not fit preact-resnet18 .Missing key"),
        ({"linear.weight": torch.zeros(1, 4)}, "no classification head"),
        (
            {**PreActResNet(3, width=4).state_dict(), "linear.bias": torch.zeros(4)},
            "size mismatch for linear.bias",
        ),
        ({**PreActResNet(3, width=4).state_dict(), "more": torch.zeros(4)}, "Unexpected key"),
    ],
)
def test_files_that_are_no_state_dict(content: Any, fragment: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pt")
    fails(fragment, tmp_path / "m.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save(PreActResNet(3, width=4), tmp_path / "whole.pt")
    fails("it names detrojan.models.preact_resnet.PreActResNet", tmp_path / "whole.pt")
    for name in ("text.pt", "text.safetensors", "notes.txt"):
        (tmp_path / name).write_text("nothing")
        fails(f"{name}: not a state dict", tmp_path / name)
    fails("gone.pt: no such file", str(tmp_path / "gone.pt"))
    torch.save({"x": torch.zeros(2)}, tmp_path / "flat.pt")
    fails("no classification head", tmp_path / "flat.pt", architecture="timm/test_resnet")


def without_head(d: Path) -> None:
    weights = load_file(d / "model.safetensors")
    del weights["classifier.1.weight"]
    save_file(weights, d / "model.safetensors", metadata={"format": "pt"})


def truncated(d: Path) -> None:
    (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:500])


def pickled(d: Path) -> None:
    (d / "model.safetensors").rename(d / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (without_head, r"1 weights are missing from the checkpoint, first classifier\.1\.weight"),
        (truncated, "no classifier that can be loaded"),
        (pickled, "is a pickle and is not opened"),
        (lambda d: edited(d, "config.json", embedding_size=12), "no classifier that can be loaded"),
        (lambda d: edited(d, "config.json", problem_type="regression"), "regression head"),
        (
            lambda d: edited(d, "config.json", problem_type="multi_label_classification"),
            "several labels at once",
        ),
        (
            lambda d: edited(d, "config.json", num_channels=1),
            "no classifier that can be loaded|cannot be used|channels",
        ),
        (lambda d: edited(d, "config.json", model_type="llama"), "no classifier that can be loaded"),
        (lambda d: (d / "config.json").write_text("[]"), "not the configuration of a model"),
        (lambda d: (d / "config.json").write_text("{"), "broken JSON"),
        (lambda d: (d / "preprocessor_config.json").write_text("{"), "its image processor cannot be loaded"),
        (
            lambda d: edited(d, "preprocessor_config.json", image_std=[-1.0, -1.0, -1.0]),
            "black and white the same or swaps",
        ),
    ],
)
def test_bad_checkpoints_are_refused(spoil: Any, fragment: str, tmp_path: Path) -> None:
    source = save_image_model(tmp_path / "in")
    spoil(source)
    fails(fragment, source)


def test_regression_of_texts_is_refused(tmp_path: Path) -> None:
    save_text_model(tmp_path / "one", names=("score",))
    fails("one: a regression head", tmp_path / "one")
    shutil.copytree(save_text_model(tmp_path / "in"), tmp_path / "no-tokenizer")
    for path in (tmp_path / "no-tokenizer").glob("tokenizer*"):
        path.unlink()
    fails("no-tokenizer: the tokenizer cannot be loaded", tmp_path / "no-tokenizer")


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, mark = save_image_model(tmp_path / "in"), tmp_path / "it-ran"
    (source / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    names = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
    edited(source, "config.json", auto_map=dict.fromkeys(names, "evil.Evil"))
    edited(source, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    load_classifier(source)
    edited(source, "config.json", model_type="unheard-of")
    fails("no classifier", source)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("inputs", "labels", "fragment"),
    [
        (pictures(2, 8, 8, channels=4), [0, 1], "its images are 4 x 8 x 8"),
        (pictures(2) / 255 * 2 - 1, [0, 1], "floats that are not in 0 to 1"),
        (pictures(2, 16, 16) / 255, [0, 1], "its images are 3 x 16 x 16"),
        (pictures(2).long(), [0, 1], "images are torch.int64, expected uint8 or floats"),
        (["a text", "another"], [0, 1], "holds texts"),
        (pictures(2), [0, 3], "label 3 is out of range; the model has the classes 0 to 2"),
        (pictures(2), [0, -1], "label -1 is out of range"),
        (pictures(0), [], "no samples"),
    ],
)
def test_samples_that_do_not_fit(inputs: Any, labels: list[int], fragment: str, tmp_path: Path) -> None:
    classifier = load_classifier(save_image_model(tmp_path / "in", "vit"))
    with pytest.raises(InputError, match=fragment):
        to_rows(classifier, Labelled(inputs, torch.tensor(labels, dtype=torch.int64)))


def test_images_of_a_zoo_model_must_fit(tmp_path: Path) -> None:
    classifier = load_classifier(tiny("preact-resnet8"))
    with pytest.raises(InputError, match=r"its images are 3 x 8 x 8 .* takes 3 x 16 x 16"):
        to_rows(classifier, Labelled(pictures(2, 8, 8), torch.tensor([0, 1])))
    with pytest.raises(InputError, match=r"holds images, but .* is a text classifier"):
        to_rows(load_classifier(save_text_model(tmp_path / "t")), Labelled(pictures(2), torch.tensor([0, 1])))
    with pytest.raises(InputError, match="square"):
        new_classifier("preact-resnet8", NAMES, (3, 8, 9))
    for name, shape, fragment in (
        ("preact-resnet", (3, 8, 8), "did you mean 'preact-resnet"),
        ("vgg19-bn", (1, 32, 32), "takes 3 channels, not 1"),
        ("vit-b-16", (3, 28, 28), "multiple of 16, not 28"),
        ("vit-mini", (1, 30, 30), "multiple of 4, not 30"),
        ("vit-mini", (1, 7, 7), "multiple of 2, not 7"),
        ("timm/resnet_of_mine", (3, 8, 8), "Unknown model"),
    ):
        with pytest.raises(InputError, match=fragment):
            new_classifier(name, NAMES, shape)
    fails("cannot be run on a sample of shape 3 x 8 x 8", new_classifier("timm/test_vit", NAMES, (3, 8, 8)))


def test_whose_side_a_model_is_on(tmp_path: Path) -> None:
    assert task_of(save_image_model(tmp_path / "i")) == task_of(save_text_model(tmp_path / "t")) == CLASSIFIER
    assert (
        task_of(pico_text_model()) == task_of(nn.Linear(2, 2)) == task_of("new:preact-resnet8") == CLASSIFIER
    )
    assert task_of(pico_model()) == CAUSAL_LM
    pico_model().save_pretrained(tmp_path / "lm")
    for named in (["LlamaForCausalLM"], 5, None, "LlamaForSequenceClassification"):
        assert task_of(edited(tmp_path / "lm", "config.json", architectures=named)) == CAUSAL_LM


def test_batches_and_modes() -> None:
    """Prediction runs in evaluation mode, in batches of any size, and leaves each part's mode as it was."""
    classifier = load_classifier(tiny("preact-resnet8"))
    images = {"pixel_values": pictures(7, 16, 16)}
    classifier.model.train()
    classifier.model.module.layer1.eval()
    modes = [m.training for m in classifier.model.modules()]
    assert torch.equal(predict(classifier, images, 3), predict(classifier, images))
    assert [m.training for m in classifier.model.modules()] == modes


def test_public_names() -> None:
    assert detrojan.load_classifier is load_classifier


@pytest.mark.parametrize(("width", "last"), [(4, False), (8, True)])
def test_channels_come_last_where_no_gradient_writes_past_its_memory(
    width: int, last: bool, tmp_path: Path
) -> None:
    new_classifier("preact-resnet8", NAMES, (1, 8, 8), width=width).save_pretrained(tmp_path)
    convolutions = (m for m in load_classifier(tmp_path).model.modules() if isinstance(m, nn.Conv2d))
    inner = next(m for m in convolutions if m.in_channels > 1)
    assert inner.weight.is_contiguous(memory_format=torch.channels_last) is last
