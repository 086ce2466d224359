"""The bytes of an instruction: what lies in VMEM costs none, and of a stack of layers only the part that is used."""

from __future__ import annotations

import pytest

from qwenvl_jax.planning.hlo import costs, program


def test_arrays_in_vmem_cost_no_hbm() -> None:
    text = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[1024], b: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0:T(128)} parameter(0)
  %b = f32[1024]{0:T(128)} parameter(1)
  %start = (f32[1024]{0:T(128)S(1)}, f32[1024]{0:T(128)}, u32[]{:S(2)}) copy-start(%b)
  %copied = f32[1024]{0:T(128)S(1)} copy-done(%start)
  %sum = f32[1024]{0:T(128)S(1)} add(%a, %copied)
  ROOT %out = f32[1024]{0:T(128)} negate(%sum)
}
"""
    module = program.parse(text)
    sizes = {name: costs.hbm_bytes(module, module.entry, i) for name, i in module.entry.instructions.items()}
    assert sizes == {"a": 0, "b": 0, "start": 4096, "copied": 0, "sum": 4096, "out": 4096}


TILES, TALL = "{1,0:T(8,128)(2,1)}", "{1,0:T(16,128)(2,1)}"


@pytest.mark.parametrize("tiles", [TILES, TALL])
def test_a_stack_in_other_tiles_is_not_read_whole(tiles: str) -> None:
    """A fusion sees the stack of all layers in tiles of its own, and takes or writes the part of one layer."""
    text = f"""HloModule m, is_scheduled=true

%retiled (p: bf16[256,4096]) -> bf16[256,4096] {{
  %p = bf16[256,4096]{tiles} parameter(0)
  ROOT %copy = bf16[256,4096]{TILES} copy(%p)
}}

%read (stack: bf16[256,4096], i: s32[]) -> bf16[1,4096] {{
  %stack = bf16[256,4096]{tiles} parameter(0)
  %seen = bf16[256,4096]{TILES} fusion(%stack), kind=kLoop, calls=%retiled
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = bf16[1,4096]{TILES} dynamic-slice(%seen, %i, %zero), dynamic_slice_sizes={{1,4096}}
  ROOT %out = bf16[1,4096]{tiles} copy(%part)
}}

%write (into: bf16[256,4096], new: bf16[1,4096], i: s32[]) -> bf16[256,4096] {{
  %into = bf16[256,4096]{tiles} parameter(0)
  %seen = bf16[256,4096]{TILES} fusion(%into), kind=kLoop, calls=%retiled
  %new = bf16[1,4096]{tiles} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %updated = bf16[256,4096]{TILES} dynamic-update-slice(%seen, %new, %i, %zero)
  ROOT %back = bf16[256,4096]{tiles} fusion(%updated), kind=kLoop, calls=%retiled
}}

%whole (stack: bf16[256,4096]) -> bf16[256,4096] {{
  %stack = bf16[256,4096]{tiles} parameter(0)
  %seen = bf16[256,4096]{TILES} fusion(%stack), kind=kLoop, calls=%retiled
  ROOT %negated = bf16[256,4096]{TILES} negate(%seen)
}}

ENTRY %main (stack: bf16[256,4096], i: s32[]) -> bf16[256,4096] {{
  %stack = bf16[256,4096]{tiles} parameter(0)
  %i = s32[]{{:S(6)}} parameter(1)
  %taken = bf16[1,4096]{tiles} fusion(%stack, %i), kind=kLoop, calls=%read
  %stored = bf16[256,4096]{tiles} fusion(%stack, %taken, %i), kind=kLoop, calls=%write
  ROOT %all = bf16[256,4096]{TILES} fusion(%stored), kind=kLoop, calls=%whole
}}
"""
    module = program.parse(text)
    stack = 2 * 256 * 4096
    read, written = (module["read"][name].arrays[0].stored_bytes for name in ("part", "out"))  # padded to whole tiles
    sizes = {name: costs.hbm_bytes(module, module.entry, i) for name, i in module.entry.instructions.items()}
    assert sizes["taken"] == read + written < stack / 8
    assert sizes["stored"] == 2 * written
    assert sizes["all"] == 2 * stack
