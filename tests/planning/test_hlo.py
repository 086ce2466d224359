"""The parser on programs whose operations, bytes and collectives are known by hand.

The TPU programs are those of `make_golden_hlo.py`, compiled once; the CPU ones are compiled here.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.planning import roofline, tables
from qwenvl_jax.planning.hlo import costs, program
from qwenvl_jax.planning.hlo.collectives import Collective, group_of
from qwenvl_jax.planning.hlo.loops import trip_count

GOLDEN = Path(__file__).parents[1] / "golden" / "hlo"


def load(name: str) -> program.Module:
    return program.parse(gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes()).decode())


def grid(topology: Topology) -> list[tuple[int, ...]]:
    """Partition n has the n-th coordinates of the grid, as in the meshes of the golden programs."""
    return [(*map(int, np.unravel_index(n, topology.shape)), 0) for n in range(topology.chips)]


def estimate(name: str, topology: str, **arguments: Any) -> roofline.Estimate:
    chips = parse_topology(topology)
    return roofline.estimate(load(name), chips, grid(chips), **arguments)


def test_one_product() -> None:
    estimated = estimate("matmul", "v5e:1x1")
    assert estimated.matmul_flops == 2 * 8192 * 4096 * 4096
    assert estimated.parts["matmul"] == pytest.approx(estimated.matmul_flops / 197e12)
    cycles = estimate("matmul", "v5e:1x1", cycles=True)
    assert estimated.parts["matmul"] < cycles.parts["matmul"] < 1.1 * estimated.parts["matmul"]
    # Both operands are read and the result is written, once.
    assert estimated.hbm_bytes == pytest.approx(2 * (8192 * 4096 + 4096 * 4096 + 8192 * 4096), rel=0.3)


def test_products_in_a_loop_count_once_per_turn() -> None:
    assert estimate("scan", "v5e:1x1").matmul_flops == 6 * 3 * 2 * 4096 * 2048 * 2048


def test_sharded_gradient() -> None:
    estimated = estimate("sharded", "v5e:4x4")
    weight = 2048 * 2048 * 2
    assert estimated.matmul_flops == 6 * 4 * 2 * 1024 * 2048 * 2048  # forward, again, two backward
    assert estimated.collective_bytes["all-gather"] == 6 * 2 * weight
    # The compiler pads the shards of the gradient by some rows.
    assert 6 * weight <= estimated.collective_bytes["reduce-scatter"] <= 1.05 * 6 * weight
    # The sum over data acts on a quarter; the loss is four bytes more.
    assert estimated.collective_bytes["all-reduce"] == pytest.approx(6 * weight / 4, abs=64)
    # No ring closes on a 4x4 slice of v5e, and nothing is hidden: the loops hold one product at a time.
    link = 45e9
    by_hand = (12 * weight * 3 / 4 + 6 * weight * 3 / 4 + 2 * 6 * weight / 4 * 3 / 4) / link
    assert estimated.collective_seconds == pytest.approx(by_hand, rel=0.03)
    assert estimated.exposed_seconds > 0.95 * estimated.collective_seconds


def test_overlapped_gathers() -> None:
    estimated = estimate("overlapped", "v5p:4x4x4")
    weight = 4096 * 16384 * 2
    assert estimated.matmul_flops == 6 * 6 * 2 * 4096 * 4096 * 16384
    assert estimated.collective_bytes["all-gather"] == 6 * 4 * weight
    assert estimated.collective_bytes["reduce-scatter"] == 6 * 2 * weight
    assert estimated.collective_bytes["all-reduce"] == pytest.approx(6 * 2 * weight / 16, abs=64)
    # fsdp 16 lies on two closed axes, data on the third.
    both = 4 * 90e9
    by_hand = (24 + 12) * weight * 15 / 16 / both + 2 * 12 * weight / 16 * 3 / 4 / (both / 2)
    assert estimated.collective_seconds == pytest.approx(by_hand, rel=0.01)
    assert estimated.exposed_seconds < 0.6 * estimated.collective_seconds
    assert estimated.seconds == pytest.approx(sum(estimated.parts.values()))


def test_sparse_cores_exchange_beside_products() -> None:
    estimated = estimate("sparse_cores", "v6e:16x16")
    weight = 4096 * 16384 * 2
    assert estimated.matmul_flops == 6 * 6 * 2 * 8192 * 4096 * 16384
    assert estimated.collective_bytes["all-gather"] == 6 * 4 * weight
    assert estimated.collective_bytes["reduce-scatter"] == 6 * 2 * weight
    assert estimated.collective_bytes["all-reduce"] == pytest.approx(6 * 2 * weight / 16, abs=64)
    # fsdp 16 lies on one closed axis, data on the other.
    by_hand = (24 + 12 + 2 * 12 / 16) * weight * 15 / 16 / (2 * 90e9)
    assert estimated.collective_seconds == pytest.approx(by_hand, rel=0.01)
    assert estimated.exposed_seconds < 0.35 * estimated.collective_seconds
    assert sum(estimated.waits.values()) == pytest.approx(estimated.exposed_seconds)


def test_attention_kernels() -> None:
    estimated = estimate("splash", "v5e:2x2")
    product = 2 * 2 * 4 * 1024 * 1024 * 128  # two rows per chip, four heads
    assert estimated.kernel_flops == pytest.approx(7 * product * 3 / 4)  # 2 products forward, 5 backward, 3 of 4 blocks
    assert estimated.parts["kernel"] == pytest.approx(estimated.kernel_flops / (0.5 * 197e12))
    assert estimated.matmul_flops == 0


KERNEL_IN_A_FUSION = """HloModule m, is_scheduled=true

%fused (q: bf16[2,4,256,104], w: bf16[64,128]) -> (bf16[2,4,256,104], bf16[256,128]) {
  %q = bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %splash_mha_fwd.1 = (bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)}) custom-call(%q), \
custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[2,4,256,104]{3,2,1,0}, bf16[2,4,256,104]{3,2,1,0}}
  %out = bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mha_fwd.1), index=0
  %whole = bf16[256,128]{1,0:T(8,128)(2,1)} all-gather(%w), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)}, bf16[256,128]{1,0:T(8,128)(2,1)}) tuple(%out, %whole)
}

ENTRY %main (q: bf16[2,4,256,104], w: bf16[64,128]) -> (bf16[2,4,256,104], bf16[256,128]) {
  %q = bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %f = (bf16[2,4,256,104]{3,2,1,0:T(8,128)(2,1)}, bf16[256,128]{1,0:T(8,128)(2,1)}) fusion(%q, %w), kind=kCustom, \
calls=%fused
}
"""


def test_a_kernel_fused_with_a_collective_counts_with_whole_lanes() -> None:
    module = program.parse(KERNEL_IN_A_FUSION)
    fusion = module.entry.root
    kernel = costs.kernel_of(module, fusion)
    assert kernel is not None and kernel.flops == 2 * 2.0 * 2 * 4 * 256 * 256 * 128
    # It reads and writes heads of 104 padded to 128; the bytes of the collective are counted separately.
    assert costs.hbm_bytes(module, module.entry, fusion) == 2 * 2 * 4 * 256 * 128 * 2


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("jit(step_fn)/while/body/closed_call/jvp(QwenVL.decode)/decoder/while/body/closed_call/blocks/mlp/up/shard_map/"
         "all_gather", "decoder/blocks/mlp/up, forward"),
        ("jit(step_fn)/while/body/closed_call/transpose(jvp(QwenVL.encode_images))/vit/while/body/closed_call/checkpoint/"
         "rematted_computation/blocks/attn/qkv/shard_map/all_gather", "vit/blocks/attn/qkv, recomputed"),
        ("jit(step_fn)/while/body/closed_call/transpose(jvp(loss))/shard_map/psum", "loss, backward"),
        ("jit(step_fn)/reduce_sum", "reduce_sum"),
        ("", "made up by the compiler"),
    ],
)  # fmt: skip
def test_waits_are_named_by_module(source: str, named: str) -> None:
    assert tables.module_name(source) == named


def test_cpu_program() -> None:
    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0])

    w, x = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    module = program.parse(jax.jit(jax.grad(loss)).lower(w, x).compile().as_text() or "")
    topology = parse_topology("v5e:1x1")
    assert roofline.estimate(module, topology, grid(topology)).matmul_flops == 5 * 3 * 2 * 16 * 32 * 32


def test_a_loop_of_unknown_length_needs_a_number() -> None:
    def run(x: Any, count: int) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, h: h @ h, x)

    shapes = jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    module = program.parse(jax.jit(run).lower(*shapes).compile().as_text() or "")
    topology = parse_topology("v5e:1x1")
    with pytest.raises(program.HloError, match="dynamic_trips"):
        roofline.estimate(module, topology, grid(topology))
    estimated = roofline.estimate(module, topology, grid(topology), dynamic_trips=7)
    assert (estimated.matmul_flops, estimated.dynamic_loops) == (7 * 2 * 16**3, 1)


LOOP = """HloModule loop, is_scheduled=true

%body (p: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {{
  %p = (s32[], s32[], f32[8]{{0:T(128)}}) parameter(0)
  %two = s32[]{{:T(128)}} constant({step})
  %i = s32[] get-tuple-element(%p), index=0
  %next = s32[] add(%i, %two)
  %n = s32[] get-tuple-element(%p), index=1
  %x = f32[8]{{0:T(128)}} get-tuple-element(%p), index=2
  %y = f32[8]{{0:T(128)}} negate(%x)
  ROOT %t = (s32[], s32[], f32[8]{{0:T(128)}}) tuple(%next, %n, %y)
}}

%condition (p: (s32[], s32[], f32[8])) -> pred[] {{
  %p = (s32[], s32[], f32[8]{{0:T(128)}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %c = pred[] compare(%i, %n), direction={direction}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(128)}} parameter(0)
  %start = s32[] constant({start})
  %stop = s32[] constant({stop})
  %t = (s32[], s32[], f32[8]{{0:T(128)}}) tuple(%start, %stop, %x)
  %w = (s32[], s32[], f32[8]{{0:T(128)}}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8]{{0:T(128)}} get-tuple-element(%w), index=2
}}
"""


@pytest.mark.parametrize(
    ("start", "stop", "step", "direction", "turns"),
    [(0, 6, 1, "LT", 6), (1, 8, 2, "LT", 4), (0, 6, 2, "LE", 4), (9, 0, -3, "GT", 3), (5, 5, 1, "LT", 0)],
)
def test_turns_of_a_loop(start: int, stop: int, step: int, direction: str, turns: int) -> None:
    module = program.parse(LOOP.format(start=start, stop=stop, step=step, direction=direction))
    assert trip_count(module, module.entry, module.entry["w"], (None,)) == turns


def instruction(attributes: str, opcode: str = "all-reduce") -> program.Instruction:
    return program.Instruction("x", opcode, (program.Array("f32", (8,), 0, 8),), ("y",), "%y", attributes)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", (0, 2)),
        ("channel_id=1, source_target_pairs={{1,2},{2,3}}", (1, 2)),
    ],
)
def test_groups(text: str, group: tuple[int, ...]) -> None:
    assert group_of(instruction(text), 4) == group


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(program.HloError, match="replica_groups"):
        group_of(instruction("replica_groups=everyone"), 4)


def test_rings() -> None:
    topology = parse_topology("v5p:4x4x8")
    coordinates = tuple(grid(topology))

    def seconds(kind: str, members: list[int], size: float = 90e9) -> float:
        return roofline.collective_seconds(Collective(kind, size, tuple(members), None), topology, coordinates)

    along_z, along_y = list(range(8)), [0, 8, 16, 24]
    assert seconds("all-gather", along_z) == pytest.approx(7 / 8 / 2)
    assert seconds("all-reduce", along_z) == pytest.approx(2 * 7 / 8 / 2)
    assert seconds("reduce-scatter", along_y) == pytest.approx(3 / 4 / 2)
    assert seconds("all-gather", [0, 1, 2, 3]) == pytest.approx(3 / 4)  # half an axis does not close
    assert seconds("all-gather", [0, 2, 4]) == pytest.approx(2 / 3 * 2)  # shares its links with those in between
    assert seconds("all-gather", list(range(32))) == pytest.approx(31 / 32 / 4)  # two axes
    assert seconds("collective-permute", [0, 1]) == pytest.approx(1)
    assert seconds("all-gather", [3]) == 0


def test_two_devices_of_a_chip_share_its_links() -> None:
    topology = parse_topology("tpu7x:2x2x4")
    coordinates = tuple((x, y, z, 0) for x in range(2) for y in range(2) for z in range(4) for _ in range(2))

    def seconds(kind: str, members: list[int]) -> float:
        return roofline.collective_seconds(Collective(kind, 90e9, tuple(members), None), topology, coordinates)

    both, one = list(range(8)), list(range(0, 8, 2))
    assert seconds("all-gather", both) == pytest.approx(3 / 4 / 2)  # what arrives at a chip is for both of its devices
    assert seconds("all-gather", one) == pytest.approx(3 / 4)  # the others have half of the links
    assert seconds("all-reduce", both) == pytest.approx(2 * 3 / 4 / 2)
    assert seconds("all-gather", [0, 1]) == pytest.approx(1 / 2 * 90 / 540)  # from die to die


def test_slices_meet_over_the_network() -> None:
    topology = parse_topology("v5e:16x16@2")
    coordinates = tuple((x, y, s) for s in range(2) for x in range(16) for y in range(16))
    reduce = Collective("all-reduce", 3.125e9, (0, 256), None)
    assert roofline.collective_seconds(reduce, topology, coordinates) == pytest.approx(2 * 1 / 2)
    wide = Collective("all-reduce", 3.125e9, (*range(16), *range(256, 272)), None)
    inside = 2 * 3.125e9 * 15 / 16 / (2 * 45e9)
    assert roofline.collective_seconds(wide, topology, coordinates) == pytest.approx(inside + 2 * 1 / 2 / 16)


def convolution(left: str, kernel: str, result: str, attributes: str) -> float:
    text = f"""HloModule c, is_scheduled=true

ENTRY %main (a: bf16[{left}], b: bf16[{kernel}]) -> bf16[{result}] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{kernel}] parameter(1)
  ROOT %c = bf16[{result}] convolution(%a, %b), {attributes}
}}
"""
    module = program.parse(text)
    return costs.matmul_flops(module, module.entry, module.entry["c"])


def test_a_batch_written_as_a_window() -> None:
    # 32 products of 16 x 64 by 64 x 8: the window has one real element per output element.
    window = "window={size=32 stride=31 pad=0_0 lhs_dilate=32}, dim_labels=0bf_0io->0bf"
    assert convolution("32,16,64", "32,64,8", "32,16,8", window) == 32 * 2 * 16 * 64 * 8


def test_a_real_window() -> None:
    # 3 taps over 8 elements with padding of one at each end: 3 * 8 - 2 real pairs.
    window = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert convolution("2,8,4", "3,4,5", "2,8,5", window) == 2 * 2 * 4 * 5 * (3 * 8 - 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "module {\n}",
        "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n",
        "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n}\n",
        "HloModule m\n\nENTRY %main (x: f99[]) -> f99[] {\n  ROOT %x = f99[] parameter(0)\n}\n",
        "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0\n}\n",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(program.HloError):
        program.parse(text)


def test_copies_from_and_to_the_host_go_over_pcie() -> None:
    text = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[4096000]) -> f32[4096000] {
  %a = f32[4096000]{0:T(1024)S(5)} parameter(0)
  %fetch = (f32[4096000]{0:T(1024)}, f32[4096000]{0:T(1024)S(5)}, u32[]{:S(2)}) copy-start(%a)
  %here = f32[4096000]{0:T(1024)} copy-done(%fetch)
  %new = f32[4096000]{0:T(1024)} negate(%here)
  %store = (f32[4096000]{0:T(1024)S(5)}, f32[4096000]{0:T(1024)}, u32[]{:S(2)}) copy-start(%new)
  ROOT %there = f32[4096000]{0:T(1024)S(5)} copy-done(%store)
}
"""
    module = program.parse(text)
    topology = parse_topology("v5p:1x1x1")
    estimated = roofline.estimate(module, topology, grid(topology))
    assert estimated.parts["copy"] == pytest.approx(2 * 4 * 4096000 / 16e9)
    assert estimated.parts["memory"] == pytest.approx(2 * 16.384e6 / topology.chip.hbm_bandwidth)
    assert estimated.hbm_bytes == 4 * 16.384e6
    host = {name: costs.host_bytes(i) for name, i in module.entry.instructions.items()}
    assert host["fetch"] == (16.384e6, 0)
    assert host["store"] == (0, 16.384e6)
    assert host["new"] == (0, 0)
