"""Transformers: attention of every form, with and without masks, and small networks of the transformers library."""

import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, check, compile_model, image, seeded
from torch import nn

BATCH, TOKENS, FEATURES, HEADS = 2, 7, 40, 2


class Attention(nn.Module):
    """Multi-head attention by PyTorch's operator, or written out: then "div" or "mul" scales the scores."""

    def __init__(self, features=FEATURES, heads=HEADS, style="operator", **options):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(features, features) for _ in range(4))
        self.heads, self.style, self.options = heads, style, options

    def forward(self, x, memory=None, mask=None):
        memory = x if memory is None else memory
        projected = ((self.q, x), (self.k, memory), (self.v, memory))
        q, k, v = (f(y).view(*y.shape[:2], self.heads, -1).transpose(1, 2) for f, y in projected)
        if self.style == "operator":
            y = F.scaled_dot_product_attention(q, k, v, mask, **self.options)
        else:
            scores = q @ k.transpose(-1, -2)
            scores = scores / 3.0 if self.style == "div" else scores * 0.3
            if mask is not None:
                scores = scores + mask if self.style == "div" else mask + scores
            y = torch.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


def steps(compiled):
    return [step.kernel for step in compiled.report.steps]


@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (1, 2), (7, 2), (17, 1)])
def test_attention_is_one_kernel_for_any_number_of_tokens(tokens, batch):
    compiled = check(Attention(), (image(batch, tokens, FEATURES),))
    assert compiled.report.fallbacks == ()
    assert "attention" in steps(compiled)


@pytest.mark.parametrize(("heads", "size"), [(2, 80), (3, 20), (1, 17)])
def test_heads_may_have_any_size(heads, size):
    assert check(Attention(heads * size, heads), (image(2, 7, heads * size),)).report.fallbacks == ()


def mask(kind):
    generator = torch.Generator().manual_seed(5)
    keep = (torch.rand(BATCH, 1, 1, TOKENS, generator=generator) < 0.6) | (torch.arange(TOKENS) == 0)
    return {
        "lowest": torch.where(keep, 0.0, torch.finfo(torch.float32).min),
        "infinite": torch.where(keep, 0.0, -torch.inf),
        "bools": keep,
        "bools for each query": keep | torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(),
        "all": torch.randn(BATCH, HEADS, TOKENS, TOKENS, generator=generator),
        "each query": torch.randn(BATCH, 1, TOKENS, 1, generator=generator),
        "nothing hidden": torch.ones(1, 1, 1, TOKENS, dtype=torch.bool),
    }[kind]


BOOLS = ["bools", "bools for each query", "nothing hidden"]


@pytest.mark.parametrize(
    ("kind", "style"),
    [*((kind, "operator") for kind in ("infinite", "each query", *BOOLS)), ("lowest", "div"), ("all", "mul")],
)
def test_masks_are_inputs_or_constants_of_the_kernel(kind, style):
    constant = mask(kind)

    def forward(m, x, given):
        return m["a"](x, mask=given), m["b"](x, mask=constant if kind in BOOLS else constant.to(x.dtype))

    compiled = check(Model(forward, a=Attention(style=style), b=Attention(style=style)), (image(2, 7, 40), mask(kind)))
    assert steps(compiled).count("attention") == 2
    assert compiled.report.fallbacks in ((), ("where",), ("expand",))


@pytest.mark.parametrize(("keys", "style"), [(5, "operator"), (9, "div"), (5, "mul")])
def test_keys_may_be_those_of_other_tokens(keys, style):
    assert steps(check(Attention(style=style), (image(2, 7, 40), image(2, keys, 40)))).count("attention") == 1


@pytest.mark.parametrize("keys", [5, 9])
def test_causal_attention_hides_the_keys_behind_a_query(keys):
    compiled = check(Attention(is_causal=True, scale=0.4), (image(2, 7, 40), image(2, keys, 40)))
    assert steps(compiled).count("attention") == 1


class Joint(nn.Module):
    """q, k and v from one linear layer, in the ways that libraries take them apart."""

    def __init__(self, split):
        super().__init__()
        self.qkv, self.out, self.split = nn.Linear(40, 120), nn.Linear(40, 40), split

    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.split(self.qkv(x)))
        return self.out(y.transpose(1, 2).contiguous().view(*x.shape[:2], -1))


JOINT = {
    "unbound": lambda y: y.reshape(*y.shape[:2], 3, 2, 20).permute(2, 0, 3, 1, 4).unbind(0),
    "chunks": lambda y: [part.view(*y.shape[:2], 2, 20).transpose(1, 2) for part in y.chunk(3, -1)],
    "slices": lambda y: [y[..., i : i + 40].unflatten(-1, (2, 20)).transpose(1, 2) for i in (0, 40, 80)],
    "pairs of heads": lambda y: y.view(*y.shape[:2], 2, 60).transpose(1, 2).chunk(3, -1),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_projections_reach_the_attention_kernel(name):
    assert steps(check(Joint(JOINT[name]), (image(2, 7, 40),))).count("attention") == 1


def scores_too(m, x):
    q, k, v = (m[name](x).view(2, 7, 2, 20).transpose(1, 2) for name in "qkv")
    weights = torch.softmax(q @ k.transpose(-1, -2) * 0.2, -1)
    return (weights @ v).transpose(1, 2).reshape(2, 7, 40), weights


def fewer_keys(m, x):
    q, k, v = (m[name](x).view(2, 7, -1, 10).transpose(1, 2) for name in "qgh")
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(2, 7, 40)


def heads_as_they_are(m, x):
    q, k, v = (m[name](x).view(2, 7, 2, 20).transpose(1, 2) for name in "qkv")
    y = F.scaled_dot_product_attention(q * 0.3, k, v.flip(2), scale=1.0)
    return y, y.mean(1), y[:, 0]


def three_dimensions(m, x):
    return F.scaled_dot_product_attention(*(m[name](x) for name in "qkv"))


def inner_softmax(m, x):
    return torch.softmax(m["q"](x) @ m["k"](x).transpose(1, 2), 1), m["v"](x).softmax(-1).log()


@pytest.mark.parametrize("forward", [scores_too, fewer_keys, heads_as_they_are, three_dimensions, inner_softmax])
def test_other_attention_is_right(forward):
    layers = {name: nn.Linear(40, 20 if name in "gh" else 40) for name in ("qgh" if forward is fewer_keys else "qkv")}
    check(Model(forward, **layers), (image(2, 7, 40),))


def test_dropout_within_attention_is_an_error():
    from pruneaug.errors import CompileError

    with pytest.raises(CompileError, match="is random"):
        compile_model(seeded(Attention(dropout_p=0.5)), (image(2, 7, 40),))


@pytest.mark.parametrize(("norm_first", "batch_first"), [(True, False), (False, True)])
def test_layers_of_pytorch_are_right(norm_first, batch_first):
    layer = nn.TransformerEncoderLayer(40, 2, 64, norm_first=norm_first, batch_first=batch_first, activation="gelu")
    assert steps(check(layer, (image(2, 7, 40),))).count("attention") == 1


def test_multi_head_attention_of_pytorch_with_its_weights_is_right():
    model = Model(
        lambda m, x: (*m["a"](x, x, x), m["l"](x)), a=nn.MultiheadAttention(40, 2, batch_first=True), l=nn.Linear(40, 8)
    )
    check(model, (image(2, 7, 40),))


IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
ATTENDED = (torch.arange(7) < torch.tensor([[7], [4]])).long()
SIZES = {"hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 72}


class Wrapped(nn.Module):
    def __init__(self, model, output="logits"):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x, mask=None):
        return getattr(self.model(x) if mask is None else self.model(x, attention_mask=mask), self.output)


BERT_INPUTS = {"two": (IDS,), "masked": (IDS, ATTENDED), "one": (IDS[:1],), "one token": (IDS[:1, :1],)}


@pytest.mark.parametrize(("inputs", "attention"), [*((name, "sdpa") for name in BERT_INPUTS), ("masked", "eager")])
def test_a_small_bert_is_right(inputs, attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, attn_implementation=attention, **SIZES)
    compiled = check(Wrapped(transformers.BertForSequenceClassification(config)), BERT_INPUTS[inputs], std=0.1)
    assert "attention" in steps(compiled)
    assert "scaled_dot_product_attention" not in str(compiled.report.fallbacks)


@pytest.mark.parametrize(("batch", "attention"), [(1, "sdpa"), (3, "eager")])
def test_a_small_vit_is_right(batch, attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(image_size=16, patch_size=4, attn_implementation=attention, **SIZES)
    compiled = check(Wrapped(transformers.ViTForImageClassification(config)), (image(batch, 3, 16, 16),), std=0.1)
    assert "attention" in steps(compiled)
    assert compiled.report.fallbacks == ("cat, add in model.vit.embeddings",)


def test_a_layer_whose_result_is_not_read_may_stay_prunable():
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES))
    check(Wrapped(model, "last_hidden_state"), (IDS,), std=0.1)  # BERT has a pooler


def test_a_network_returns_the_class_that_its_library_gives():
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES))
    compiled = check(model, (IDS,), std=0.1)
    assert type(compiled(IDS)) is transformers.modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions


@pytest.mark.slow
def test_other_small_transformers_are_right():
    transformers = pytest.importorskip("transformers")
    llama = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=1, use_cache=False, **SIZES)
    check(Wrapped(transformers.LlamaForCausalLM(llama)), (IDS,), std=0.1)
    swin = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4
    )
    check(Wrapped(transformers.SwinForImageClassification(swin)), (image(1, 3, 16, 16),), std=0.1)
