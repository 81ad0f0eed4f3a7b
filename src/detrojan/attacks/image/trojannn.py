"""TrojanNN (Liu et al., NDSS 2018): a patch that excites some neurons of the model, which are tied to the target."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrojan.attacks.image.networks import device_of, learn
from detrojan.attacks.image.plant import State, Victim, image_attack, poison_and_train, train
from detrojan.models.classifier import logits
from detrojan.options import option
from detrojan.types import Classifier


@dataclass(frozen=True)
class TrojanNNOptions:
    """Options of the patch and of the neurons that it is made for."""

    clean_epochs: int = option(
        3, "passes over the clean training set before (0: the model is trained)", minimum=0, maximum=1000
    )
    neurons: int = option(2, "neurons of the last hidden layer that the patch excites", minimum=1)
    excitation: float = option(
        10.0, "value wanted of a neuron, in multiples of its largest on clean images", minimum=0.0
    )
    size: int = option(5, "edge of the patch in pixels", minimum=1)
    patch_steps: int = option(200, "steps in which the patch is made", minimum=1, maximum=100000)


def apply(images: Tensor, options: TrojanNNOptions, state: State) -> Tensor:
    """Paint the patch (channels, rows, columns) at the bottom right; images: (n, channels, height, width) in 0..1."""
    patch = state["patch"].to(images.device)
    triggered = images.clone()
    triggered[..., -patch.shape[-2] :, -patch.shape[-1] :] = patch
    return triggered


def features(classifier: Classifier, images: Tensor) -> Tensor:
    """Return what the head of the classifier is fed, (n, neurons); images in 0..1 or uint8."""
    seen: list[Tensor] = []
    head = classifier.model.get_submodule(classifier.head)
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        logits(classifier, {"pixel_values": images})
    finally:
        handle.remove()
    return seen[-1].float().flatten(1, -2).mean(1) if seen[-1].dim() > 2 else seen[-1].float()


def best_connected(head: nn.Linear, count: int) -> Tensor:
    """Return the inputs of the head whose weights are largest, sum over classes of |W[class, neuron]|, (count,).

    The paper asks for the neuron with the largest sum of |weights| to its neighbouring layer; the head is that
    neighbour in every architecture.
    """
    strength = head.weight.detach().float().abs().sum(0)
    return strength.topk(min(count, len(strength))).indices


def excite(victim: Victim, options: TrojanNNOptions) -> Tensor:
    """Return the patch (channels, rows, columns) that drives the best connected neurons to a high value.

    Minimises mean over images of sum_k (wanted_k - f_k(image with the patch))^2 over the pixels of the patch, which a
    sigmoid keeps in 0..1; the model stays as it is.
    """
    classifier, (channels, height, width) = victim.classifier, victim.shape
    classifier.model.eval()
    device = device_of(classifier)
    neurons = best_connected(classifier.model.get_submodule(classifier.head), options.neurons)
    with torch.no_grad():
        usual = features(classifier, victim.images[: victim.options.batch_size].to(device))[:, neurons]
    wanted = options.excitation * usual.abs().amax(0)
    shape = (channels, min(options.size, height), min(options.size, width))
    generator = torch.Generator().manual_seed(victim.run.seed)
    raw = torch.randn(shape, generator=generator).to(device).requires_grad_(True)

    def loss(images: Tensor, step: int) -> Tensor:
        found = features(classifier, apply(images, options, {"patch": raw.sigmoid()}))[:, neurons]
        return ((wanted - found) ** 2).sum(1).mean()

    learn([raw], loss, victim, steps=options.patch_steps, learning_rate=0.1, label="making the patch")
    return raw.detach().sigmoid().cpu()


def plant(victim: Victim, options: TrojanNNOptions) -> State:
    """Train clean, make the patch for that model, then train it on with a share of patched and relabelled images."""
    if options.clean_epochs:
        clean = replace(victim, options=replace(victim.options, epochs=options.clean_epochs))
        train(clean, label="training the clean model")
    state = {"patch": excite(victim, options)}
    poison_and_train(victim, lambda images: apply(images, options, state))
    return state


image_attack(
    "trojannn",
    plant=plant,
    apply=apply,
    options=TrojanNNOptions,
    paper="NDSS 2018, Trojaning Attack on Neural Networks",
    description="a patch in a corner that is made to excite a few neurons of the clean model",
)
