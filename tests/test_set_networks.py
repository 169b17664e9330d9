"""Backbones for sets: equal to plain padded networks, blind to order and to the other sets of a batch."""

from __future__ import annotations

import itertools
import json
import math

import awkward as ak
import pytest
import torch

from drapes_hep.networks import attention
from drapes_hep.networks.attention import packed_attention, pool_attention, token_attention
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.embeddings import CosineEmbedding, FourierEmbedding, SineCosineEmbedding, make_embedding
from drapes_hep.networks.epic import EPiC
from drapes_hep.networks.set_backbone import SetLayout, uncompiled
from drapes_hep.networks.transformer import SetTransformer

LENGTHS = [7, 0, 1, 90, 33, 128, 1, 55, 34, 60, 0, 58, 12, 120]
MOST = max(LENGTHS)

NETWORKS = {
    "transformer": (SetTransformer, {"width": 24, "depth": 2, "heads": 4, "condition_width": 8}),
    "tokens": (
        SetTransformer,
        {"width": 24, "depth": 2, "heads": 4, "condition_width": 8, "tokens": 3, "token_width": 12},
    ),
    "epic": (EPiC, {"width": 16, "global_width": 5, "depth": 2}),
    "deepsets": (AttentiveDeepSets, {"width": 16, "depth": 2, "heads": 2}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def offsets_of(lengths) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(name, condition=2, **options):
    """A network whose zero last layer is filled, so that its output says something."""
    kind, defaults = NETWORKS[name]
    net = kind(3, condition, **{**defaults, **options})
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net


def inputs(lengths=LENGTHS, condition=2):
    x, s = randn(sum(lengths), 3, seed=1), randn(len(lengths), seed=2) / 2
    return x, s, randn(len(lengths), condition, seed=3), offsets_of(lengths)


# ------------------------------------------------------------------ the plain reference: padded to the longest, masked


def padded(values, lengths):
    out = values.new_zeros(len(lengths), MOST, values.shape[1])
    return torch.stack(
        [torch.cat([v, o[len(v) :]]) for v, o in zip(values.split(list(lengths)), out, strict=True)], dim=0
    )


def packed(values, lengths):
    return torch.cat([v[:n] for v, n in zip(values, lengths, strict=True)])


def heads_of(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def plain_attention(q, k, v, heads, mask=None):
    """Dense (sets, members, w); mask (sets, keys)."""
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -1e9)
    out = scores.softmax(-1) @ v
    if mask is not None:
        out = out * mask.any(1)[:, None, None, None]
    return out.transpose(1, 2).flatten(2)


def mask_of(lengths):
    return torch.arange(MOST) < torch.tensor(lengths)[:, None]


def silu(x):
    return x * torch.sigmoid(x)


def mlp(first, second, x):
    return second(silu(first(x)))


def embed(net, s, c):
    return torch.cat([net.embedding(s), c], dim=1)


def attend(block, h, heads, mask):
    q, k, v = block.qkv(block.norm(h)).chunk(3, dim=-1)
    return h + block.out(plain_attention(q, k, v, heads, mask))


def feed(layer, h, bias):
    return h + layer.second(silu(layer.first(layer.norm(h)) + bias[:, None]))


def plain_transformer(net, x, s, c, mask):
    context = net.context(silu(mlp(net.condition_first, net.condition_second, embed(net, s, c))))
    w, t = net.config["width"], net.config["token_width"]
    of_members = w + 2 * w * len(net.blocks)
    context, context_of_tokens = context[:, :of_members], context[:, of_members:]
    h = net.first(x) + context[:, None, :w]
    tokens = net.token + context_of_tokens[:, None, :t] if net.tokens else None
    for i, block in enumerate(net.blocks):
        bias = context[:, w + 2 * w * i : w + 2 * w * (i + 1)]
        if tokens is None:
            h = attend(block, h, net.config["heads"], mask)
        else:
            q, k, v = block.qkv(block.norm(h)).chunk(3, dim=-1)
            read = plain_attention(block.query(block.token_norm(tokens)), k, v, net.config["heads"], mask)
            token_bias = context_of_tokens[:, t + 2 * t * i : t + 2 * t * (i + 1)]
            tokens = feed(block.token_feed, tokens + block.token_out(read), token_bias)
            k, v = block.key_value(block.read_norm(tokens)).chunk(2, dim=-1)
            h = h + block.out(plain_attention(q, k, v, net.config["heads"]))
        h = feed(block.feed, h, bias)
    return net.last(net.norm(h))


def plain_epic(net, x, s, c, mask):
    c = embed(net, s, c)
    repeat = c[:, None].expand(-1, MOST, -1)

    def pools(h):
        total = (h * mask[..., None]).sum(1)
        return [total / mask.sum(1).clamp(min=1)[:, None], 0.01 * total]

    def joined(a, b, *parts):
        weight, bias = torch.cat([a.weight, b.weight], dim=1), a.bias + b.bias
        return torch.cat(parts, dim=-1) @ weight.T + bias

    h = net.second(silu(joined(net.first, net.first_shared, x, repeat)))
    g = mlp(net.pool, net.pool_out, torch.cat([*pools(h), c], dim=1))
    for layer in net.layers:
        g = g + mlp(layer.pool, layer.pool_out, torch.cat([*pools(h), g, c], dim=1))
        copies = g[:, None].expand(-1, MOST, -1)
        h = h + layer.member_out(silu(joined(layer.member, layer.shared, h, copies, repeat)))
    return net.last(silu(h))


def plain_deepsets(net, x, s, c, mask):
    context = net.shared(silu(mlp(net.condition_first, net.condition_second, embed(net, s, c))))
    skip = mlp(net.first, net.second, x) + context[:, None]
    h = silu(skip)
    for layer in net.layers:
        h = attend(layer, h, net.config["heads"], mask)
        h = h + mlp(layer.first, layer.second, layer.dense_norm(h))
    return net.last(silu(net.output(net.norm(h + skip))))


PLAIN = {
    "transformer": plain_transformer,
    "tokens": plain_transformer,
    "epic": plain_epic,
    "deepsets": plain_deepsets,
}


# ------------------------------------------------------------------------------------------------------------- layout


def test_layout_says_where_members_belong():
    layout = SetLayout.of(offsets_of([2, 0, 3]))
    assert (layout.sets, layout.total, layout.longest) == (3, 5, 3)
    assert layout.lengths.tolist() == [2, 0, 3]
    assert layout.index.tolist() == [0, 0, 2, 2, 2]
    assert layout.boundaries.tolist() == [0, 2, 5]
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0], [8.0]])
    assert layout.sum(values).ravel().tolist() == [3, 0, 15]
    assert layout.mean(values).ravel().tolist() == [1.5, 0, 5]
    assert layout.expand(torch.tensor([[1.0], [2.0], [3.0]])).ravel().tolist() == [1, 1, 3, 3, 3]


def test_buckets_hold_every_member_once_with_little_padding():
    lengths = torch.randint(1, 129, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    lengths[5] = 0
    layout = SetLayout.of(offsets_of(lengths))
    blocks, order, rows, back = layout.buckets
    assert 3 < len(blocks) < 30
    assert sum(b.sets * b.length for b in blocks) == len(rows) <= 1.1 * layout.total + 64 * len(blocks)
    assert torch.equal(rows[back], torch.arange(layout.total))
    assert sorted(order.tolist()) == [i for i in range(300) if i != 5]
    place = 0
    for block in blocks:
        inside = layout.index[rows[place : place + block.sets * block.length]].view(block.sets, block.length)
        assert (inside == inside[:, :1]).all()  # padding never mixes sets
        place += block.sets * block.length


def test_the_last_layout_is_kept_and_not_mistaken():
    offsets = offsets_of([2, 3])
    first = SetLayout.of(offsets)
    assert SetLayout.of(offsets.clone()) is first
    offsets[1] = 1  # the caller's own
    assert SetLayout.of(offsets).lengths.tolist() == [1, 4]
    assert first.lengths.tolist() == [2, 3]


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("kind", ["set", "pool", "token"])
def test_attention_equals_the_padded_one_and_so_do_its_gradients(kind):
    layout, mask, t, w, heads = SetLayout.of(offsets_of(LENGTHS)), mask_of(LENGTHS), 3, 16, 4
    assert len(layout.buckets.blocks) > 2
    shapes = {
        "set": [(layout.total, w)] * 3,
        "pool": [(layout.sets, t, w), *[(layout.total, w)] * 2],
        "token": [(layout.total, w), *[(layout.sets, t, w)] * 2],
    }[kind]
    results = []
    for plain in (False, True):
        q, k, v = inputs = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
        if not plain:
            if kind == "set":
                out = packed_attention(torch.cat([q, k, v], dim=1), layout, heads)
            else:
                out = {"pool": pool_attention, "token": token_attention}[kind](q, k, v, layout, heads)
        elif kind == "set":
            out = packed(plain_attention(*(padded(a, LENGTHS) for a in inputs), heads, mask), LENGTHS)
        elif kind == "pool":
            out = plain_attention(q, padded(k, LENGTHS), padded(v, LENGTHS), heads, mask)
        else:
            out = packed(plain_attention(padded(q, LENGTHS), k, v, heads), LENGTHS)
        (out * randn(*out.shape, seed=9)).sum().backward()
        results.append([out.detach(), *(a.grad for a in inputs)])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_heads_must_divide_the_width():
    layout, rows = SetLayout.of(offsets_of([2])), torch.zeros(2, 6)
    for call in (
        lambda: packed_attention(rows, layout, 4),
        lambda: pool_attention(rows[None], rows, rows, layout, 4),
        lambda: token_attention(rows, rows[None], rows[None], layout, 4),
    ):
        with pytest.raises(ValueError, match="heads"):
            call()


# ---------------------------------------------------------------------------------------------------------- backbones


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_the_padded_one_and_so_do_its_gradients(name):
    net, (x, s, c, offsets) = built(name), inputs()
    x.requires_grad_()
    weight = randn(*x.shape, seed=5)
    results = []
    for plain in (False, True):
        if plain:
            out = packed(PLAIN[name](net, padded(x, LENGTHS), s, c, mask_of(LENGTHS)), LENGTHS)
        else:
            out = net(x, s, c, offsets=offsets)
        grads = torch.autograd.grad((out * weight).sum() / 30, [x, *net.parameters()])
        results.append([out.detach(), *grads])
    names = ["output", "input", *(n for n, _ in net.named_parameters())]
    for what, ours, other in zip(names, *results, strict=True):
        torch.testing.assert_close(ours, other, rtol=2e-4, atol=2e-5, msg=lambda m, what=what: f"{what}: {m}")
        assert other.abs().sum() > 0, what


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_members_and_of_sets_and_company_do_not_matter(name):
    net, (x, s, c, offsets) = built(name), inputs()
    g = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        out = net(x, s, c, offsets=offsets)
        # members
        order = torch.cat([a + torch.randperm(b - a, generator=g) for a, b in itertools.pairwise(offsets)])
        torch.testing.assert_close(net(x[order], s, c, offsets=offsets), out[order], rtol=1e-5, atol=1e-5)
        # sets
        sets = torch.randperm(len(LENGTHS), generator=g)
        rows = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in sets])
        moved = net(x[rows], s[sets], c[sets], offsets=offsets_of([LENGTHS[i] for i in sets]))
        torch.testing.assert_close(moved, out[rows], rtol=1e-5, atol=1e-5)
        # each set alone
        for i, n in enumerate(LENGTHS):
            inside = slice(int(offsets[i]), int(offsets[i + 1]))
            alone = net(x[inside], s[i : i + 1], c[i : i + 1], offsets=torch.tensor([0, n]))
            torch.testing.assert_close(alone, out[inside], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["lhco/events_anomalydetection_tiny.h5", "simulated/qcd_constituents.h5"])
def real_jets(request, data_dir):
    """Scaled constituents of 200 jets of the raw LHC Olympics file, or simulated; 128 of a jet at most."""
    from drapes_hep.events.chunks import Reading, split
    from drapes_hep.events.ragged import KINEMATICS, low_level, pack_nested
    from drapes_hep.events.readers import read, scan

    reading = Reading(constituents=True)
    info = scan(data_dir / request.param, reading=reading)
    events = read(next(iter(split(info, chunksize=100, reading=reading))))
    jets = events.jets[:, :2]
    sets, _ = pack_nested(jets.constituents, KINEMATICS)
    columns = [torch.as_tensor(ak.to_numpy(ak.flatten(jets[name]))) for name in ("pt", "eta", "phi")]
    low = low_level(sets, torch.stack(columns, dim=1), MOST)
    values = low.values.double()
    values[:, 0] = values[:, 0].log()
    return ((values - values.mean(0)) / values.std(0)).float(), low.offsets


@pytest.mark.parametrize("name", NETWORKS)
def test_real_jets_equal_their_padded_selves_in_any_order(name, real_jets):
    x, offsets = real_jets
    lengths = offsets.diff().tolist()
    assert len(lengths) == 200
    assert max(lengths) > 90
    net, s, c = built(name), randn(200, seed=2) / 2, randn(200, 2, seed=3)
    g = torch.Generator().manual_seed(4)
    order = torch.cat([a + torch.randperm(b - a, generator=g) for a, b in itertools.pairwise(offsets)])
    with torch.inference_mode():
        out = net(x, s, c, offsets=offsets)
        plain = packed(PLAIN[name](net, padded(x, lengths), s, c, mask_of(lengths)), lengths)
        torch.testing.assert_close(out, plain, rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(net(x[order], s, c, offsets=offsets), out[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("condition", [0, 2])
def test_one_noise_level_for_all_sets(name, condition):
    net, (x, _, c, offsets) = built(name, condition), inputs()
    given, level = (c if condition else None), torch.tensor([-0.4])
    repeated = net(x, level.expand(len(LENGTHS)), given, offsets=offsets)
    torch.testing.assert_close(net(x, level, given, offsets=offsets), repeated, rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        keep = x.clone()
        torch.testing.assert_close(net(x, level, given, offsets=offsets), repeated, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, keep)
    # and after inference has made the layout, training still works
    net(x, level, given, offsets=offsets).sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1], [0, 1, 0]])
def test_next_to_nothing(name, lengths):
    net, (x, s, c, offsets) = built(name), inputs(lengths)
    out = net(x, s, c, offsets=offsets)
    assert out.shape == x.shape
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_built_again_from_its_config(name):
    before = torch.get_rng_state()
    net = NETWORKS[name][0](3, 2, **NETWORKS[name][1], embedding="fourier", seed=5)
    assert torch.equal(before, torch.get_rng_state())
    again = type(net)(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    x, s, c, offsets = inputs()
    assert net(x, s, c, offsets=offsets).abs().max() == 0  # the last layer starts at zero
    torch.nn.init.ones_(net.last.weight)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, s, c, offsets=offsets), net(x, s, c, offsets=offsets))
    same = type(net)(3, 2, **NETWORKS[name][1], embedding="fourier", seed=5)
    assert all(
        torch.equal(a, b)
        for (n, a), (_, b) in zip(net.named_parameters(), same.named_parameters(), strict=True)
        if n != "last.weight"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_in_half_precision(name):
    net, (x, s, c, offsets) = built(name), inputs()
    full = net(x, s, c, offsets=offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, s, c, offsets=offsets)
        with torch.inference_mode():
            inferred = net(x, s, c, offsets=offsets)
    half.float().sum().backward()
    scale = float(full.detach().std())
    assert float((half.float() - full).detach().std()) < 0.05 * scale
    assert float((inferred.float() - full).detach().std()) < 0.05 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_bad_sizes_and_inputs(name):
    kind, options = NETWORKS[name]
    bad = [{"width": 0}, {"depth": 0}, {"embedding": "none"}, {"embedding_size": 0}]
    bad += [{"heads": 7}] if "heads" in options else [{"global_width": 0}]
    bad += [{"token_width": 10}] if "token_width" in options else []
    for one in bad:
        with pytest.raises(ValueError, match=r"positive|heads|unknown"):
            kind(3, 2, **{**options, **one})
    net, (x, s, c, offsets) = built(name), inputs()
    for given in ((x[1:], s, c), (x, s[1:], c), (x, s, c[1:]), (x, s, None), (x, s, c[:, :1])):
        with pytest.raises(ValueError, match=r"members|noise|condition"):
            net(*given, offsets=offsets)


# --------------------------------------------------------------------------------------------------------- embeddings


def test_embeddings():
    s = torch.linspace(-1.9, 1.9, 50)
    for name, kind in (("cosine", CosineEmbedding), ("fourier", FourierEmbedding), ("sincos", SineCosineEmbedding)):
        made = make_embedding(name, 8)
        assert type(made) is kind
        out = made(s)
        assert out.shape == (50, 8)
        assert out.abs().max() <= 1
        assert torch.cdist(out, out).fill_diagonal_(1).min() > 1e-3  # no two levels look alike
    assert not torch.equal(FourierEmbedding(8, seed=1).frequency, FourierEmbedding(8, seed=2).frequency)
    assert "frequency" in FourierEmbedding(8).state_dict()
    for name in ("fourier", "sincos"):
        with pytest.raises(ValueError, match="even"):
            make_embedding(name, 7)


# ------------------------------------------------------------------------------------- the kernel for packed sequences


def varlen_reference(q, k, v, q_ends, k_ends, most_q, most_k):
    """What PyTorch's kernel for packed sequences computes, one sequence after the other; q, k, v (rows, heads, w)."""
    assert q_ends.dtype == k_ends.dtype == torch.int32
    out = []
    for i in range(len(q_ends) - 1):
        mine, theirs = slice(int(q_ends[i]), int(q_ends[i + 1])), slice(int(k_ends[i]), int(k_ends[i + 1]))
        assert 0 < mine.stop - mine.start <= most_q
        assert 0 < theirs.stop - theirs.start <= most_k
        scores = torch.einsum("qhw,khw->hqk", q[mine], k[theirs]) / math.sqrt(q.shape[-1])
        out.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), v[theirs]))
    assert int(q_ends[-1]) == len(q)
    return torch.cat(out)


@pytest.mark.parametrize("name", ["transformer", "tokens", "deepsets"])
def test_the_packed_kernels_way_is_that_of_the_blocks(name, monkeypatch):
    """The branch that a GPU takes, with a stand-in for its kernel: what is handed to it, and what becomes of it."""
    net, (x, s, c, offsets) = built(name), inputs()
    blocks = net(x, s, c, offsets=offsets)
    calls = []

    def kernel(*given):
        calls.append(given[4:])
        return varlen_reference(*given)

    monkeypatch.setattr(attention, "_packed_kernel", lambda _q, _heads: kernel)
    torch.testing.assert_close(net(x, s, c, offsets=offsets), blocks, rtol=1e-4, atol=1e-5)
    assert len(calls) == (4 if name == "tokens" else 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [SetTransformer, AttentiveDeepSets])
def test_half_precision_on_a_gpu_is_single_precision_on_a_cpu(kind):
    net = kind(3, 2, width=64, depth=2, heads=4, seed=1)
    x, s, c, offsets = inputs()
    with torch.no_grad():
        net.last.weight.copy_(torch.randn(net.last.weight.shape, generator=torch.Generator().manual_seed(0)) / 8)
        expected = net(x, s, c, offsets=offsets)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = net.cuda()(*(one.cuda() for one in (x, s, c)), offsets=offsets.cuda())
    assert float((found.float().cpu() - expected).std()) < 0.05 * float(expected.std())


# ------------------------------------------------------------------------------------------------------------ compiled


def test_what_is_not_to_be_compiled_runs_as_it_is_in_a_compiled_caller():
    compiling = []

    @uncompiled
    def noted(x):
        compiling.append(torch.compiler.is_compiling())
        return 2 * x

    caller = torch.compile(lambda x: noted(x) + 1, dynamic=True, backend="eager")
    assert [caller(torch.full((n,), 1.0)).tolist() for n in (2, 3)] == [[3.0] * 2, [3.0] * 3]
    assert compiling == [False, False]
