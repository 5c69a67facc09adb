import pytest
import torch
from torch import nn

from pruneaug.errors import PluginError, TaskError
from pruneaug.tasks import MODELS


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def image(size, channels=3, batch=2):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


# Published: torchvision's model pages for ResNet-50, VGG-16 and ViT-B/16; 0.27 M for ResNet-20 (He et al., table 6).
NETWORKS = [
    pytest.param("digits_cnn", {}, (image(32, 1),), 10, 1_276_650, id="digits_cnn"),
    pytest.param("resnet20", {"shortcut": "A"}, (image(32),), 10, 269_722, id="resnet20-A"),
    pytest.param("resnet20", {}, (image(32),), 10, 272_474, id="resnet20-B"),
    pytest.param("vgg16", {}, (image(32),), 10, 14_724_042, id="vgg16"),
    pytest.param("resnet50", {}, (image(224, batch=1),), 1000, 25_557_032, id="resnet50", marks=pytest.mark.slow),
    pytest.param("vgg16_224", {}, (image(224, batch=1),), 1000, 138_357_544, id="vgg16_224", marks=pytest.mark.slow),
    pytest.param("vit_b16", {}, (image(224, batch=1),), 1000, 86_567_656, id="vit_b16", marks=pytest.mark.slow),
    pytest.param(
        "bert_base",
        {},
        (torch.arange(1, 129)[None], torch.ones(1, 128, dtype=torch.int64)),
        2,
        109_483_778,
        id="bert_base",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "options", "inputs", "classes", "count"), NETWORKS)
def test_a_network_has_its_published_size_and_exports(name, options, inputs, classes, count):
    model = MODELS.create(name, options).eval()
    assert parameters(model) == count
    with torch.inference_mode():
        expected = model(*inputs)
    with torch.no_grad():
        exported = torch.export.export(model, inputs).module()(*inputs)
    logits, again = (out if isinstance(out, torch.Tensor) else out.logits for out in (expected, exported))
    assert logits.shape == (len(inputs[0]), classes)
    assert logits.isfinite().all()
    torch.testing.assert_close(again, logits)


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (MODELS.create("resnet20", {"seed": seed}).conv1.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_digits_cnn_costs_170_million_multiply_accumulates():
    model = MODELS.create("digits_cnn", {}).eval()
    macs = []

    def count(module, _, output):
        macs.append(module.weight[0].numel() * output[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(image(32, 1, batch=1))
    assert 165e6 < sum(macs) < 175e6


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "digits_cnn"])
def test_classes_and_channels_can_be_chosen(name):
    model = MODELS.create(name, {"num_classes": 3, "in_channels": 2})
    assert model(image(32, 2)).shape == (2, 3)


def test_resnet50_has_torchvisions_parameter_names():
    with torch.device("meta"):
        names = MODELS.create("resnet50", {}).state_dict()
    assert len(names) == 320  # of torchvision's resnet50: 161 parameters, 53 batch norms with 3 buffers each
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer3.5.bn2.bias", "fc.bias"} <= names.keys()


def test_vgg16_224_has_torchvisions_parameter_names():
    with torch.device("meta"):
        names = MODELS.create("vgg16_224", {}).state_dict()
    layers = (*(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), "classifier.0")
    expected = [f"{layer}.{kind}" for layer in (*layers, "classifier.3", "classifier.6") for kind in ("weight", "bias")]
    assert list(names) == expected


def test_option_a_shortcut_pads_zero_channels_around_the_strided_input():
    block = MODELS.create("resnet20", {"shortcut": "A"}).blocks[3]
    x = image(8, 16)
    shortcut = block.shortcut(x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def test_any_transformers_network_can_be_named():
    options = {"architecture": "BertForSequenceClassification", "config": TINY_BERT, "num_classes": 3, "vocab_size": 50}
    model = MODELS.create("transformers", options)
    assert model.config.vocab_size == 50
    assert model.config._attn_implementation == "eager"
    assert model(torch.arange(8)[None]).logits.shape == (1, 3)


def test_the_config_wins_over_what_the_data_says():
    options = {"architecture": "BertForSequenceClassification", "config": TINY_BERT | {"vocab_size": 70}}
    assert MODELS.create("transformers", options | {"vocab_size": 50}).config.vocab_size == 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "BertForNothing"}, "network class of transformers, but got 'BertForNothing'"),
        ({"architecture": "BertForSequenceClassification", "config": {"layers": 2}}, "BertConfig has no 'layers'"),
        (
            {"architecture": "BertForSequenceClassification", "config": TINY_BERT | {"num_attention_heads": 3}},
            "cannot be built",
        ),
    ],
)
def test_a_wrong_transformers_network_is_refused(options, message):
    with pytest.raises(TaskError, match=message):
        MODELS.create("transformers", options)


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(TaskError, match=r"'A'.*'B'.*but got 'C'"):
        MODELS.create("resnet20", {"shortcut": "C"})


def test_an_unknown_network_gets_a_suggestion():
    with pytest.raises(PluginError, match="did you mean 'resnet50'"):
        MODELS.load("resnet5")
