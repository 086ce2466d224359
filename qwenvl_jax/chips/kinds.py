"""The one table of what we know about chips; `plan` prints it. Their names in the cloud are in `cloud.py`.

Units: operations and bytes per second, bytes, hertz; bandwidths of links are one way. Sources of the constants, as of
November 2026:

  [cloud]   Google Cloud TPU documentation, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x", table of key
            specifications (https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p-training, /v6e, /tpu7x)
  [scaling] "How to Scale Your Model", chapter 2, "TPU Specs" (https://jax-ml.github.io/scaling-book/tpus): link and
            data-centre bandwidths as they are reached in practice
  [clock]   the rate at which the matrix units reach the peak (v5e: 4 units * 128^2 * 2 * 1.5 GHz = 197 TFLOP/s). At
            this clock the compiler's cycles for a product of 16384 x 4096 x 11008 are 1.05 (v5e), 1.12 (v4), 1.14
            (v6e) and 1.21 (v5p) times the time at the peak, so the cycles refer to this clock
  [price]   list prices on demand per chip and hour: v4 3.22 (us-central2), v5e 1.20, v5p 4.20, v6e 2.70, tpu7x 12.00,
            quoted at second hand; the price list (https://cloud.google.com/tpu/pricing) decides, and `--prices`
            overrides
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    Attributes:
      kind: name on the command line.
      peak_flops: dense bfloat16 operations per second [cloud].
      hbm_bytes: memory [cloud]; the compiler keeps up to 1 % of it for itself.
      hbm_bandwidth: bytes per second [cloud].
      clock: hertz, turns the compiler's cycles into seconds [clock].
      link_bandwidth: bytes per second of one ICI link, one way [scaling]; [cloud] has 10 % more.
      dcn_bandwidth: bytes per second of one chip's share of its host's network, one way [scaling].
      host_bandwidth: bytes per second between a chip and its host's memory over PCIe, one way [scaling].
      torus_axes: 2 or 3 [cloud].
      wrap_multiple: an axis whose length is a multiple of this closes into a ring (cubes of 4 on v4 and v5p by
        optical switches, whole sides of 16 on v5e and v6e) [cloud], [scaling].
      price: US dollars per chip and hour, list price on demand in the cheapest US region [price]; yours will differ.
      compiler_kind, compiler_config: how libtpu calls it.
      device_kinds: how JAX calls it (`jax.Device.device_kind`).
      devices: number of JAX devices per chip; all figures above are per chip.
      die_bandwidth: bytes per second between the two devices of a chip, one way [cloud]; 0 if there is one.
      one_core: whether it has one core, or its cores share no memory.
      sparse_cores: whether its SparseCores take over collectives.
      scoped_vmem_kib: the part of VMEM that one operation may use, in KiB; 0 keeps the compiler's default of 16 MiB,
        which is all that v4 has. With 32 MiB the tiles of large matrix products grow and the compiler's cycles of a
        whole step fall by a tenth. Beyond that little is gained and compilation takes twice as long, except on v6e,
        whose matrix products are limited by re-reading their operands.
    """

    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    clock: float
    link_bandwidth: float
    dcn_bandwidth: float
    host_bandwidth: float
    torus_axes: int
    wrap_multiple: int
    price: float
    compiler_kind: str
    compiler_config: str
    device_kinds: tuple[str, ...]
    one_core: bool
    sparse_cores: bool
    scoped_vmem_kib: int
    devices: int = 1
    die_bandwidth: float = 0.0

    @property
    def device(self) -> Chip:
        """The figures of one JAX device: those of the chip, divided by its devices but for the clock and the links."""
        parts = ("peak_flops", "hbm_bytes", "hbm_bandwidth", "dcn_bandwidth", "host_bandwidth")
        return dataclasses.replace(self, devices=1, **{name: getattr(self, name) / self.devices for name in parts})


CHIPS = {
    chip.kind: chip
    for chip in (
        Chip(
            kind="v4",
            peak_flops=275e12,  # [cloud] 275 teraflops
            hbm_bytes=32 * GIB,  # [cloud] 32 GiB
            hbm_bandwidth=1.228e12,  # [cloud] 1200 GBps, rounded: 4 x 1024 bits at 2.4 Gbit/s
            clock=1.05e9,  # [clock] 2 cores * 4 units * 128^2 * 2 * 1.05 GHz = 275 TFLOP/s
            link_bandwidth=45e9,  # [scaling] 4.5e10
            dcn_bandwidth=6.25e9,  # [scaling] 6.25e9 per TPU
            host_bandwidth=16e9,  # [scaling] PCIe, 16 GB per second each way
            torus_axes=3,
            wrap_multiple=4,
            price=3.22,
            compiler_kind="v4",
            compiler_config="megacore",
            device_kinds=("TPU v4",),
            one_core=False,
            sparse_cores=False,
            scoped_vmem_kib=0,
        ),
        Chip(
            kind="v5e",
            peak_flops=197e12,  # [cloud] 197 TFLOPs
            hbm_bytes=16 * GIB,  # [cloud] 16 GB
            hbm_bandwidth=0.819e12,  # [cloud] 819 GBps (a later version of the page: 800 GiBps)
            clock=1.5e9,  # [clock] 4 units * 128^2 * 2 * 1.5 GHz = 197 TFLOP/s
            link_bandwidth=45e9,  # [scaling] 4.5e10; [cloud] 400 GBps both ways on 4 links: 50e9
            dcn_bandwidth=3.125e9,  # [scaling] 3.125e9; [cloud] 2 x 100 Gbps for the 8 chips of a host: the same
            host_bandwidth=16e9,  # [scaling] "typically around 1.5e10 per chip"
            torus_axes=2,
            wrap_multiple=16,
            price=1.20,
            compiler_kind="v5e",
            compiler_config="default",
            device_kinds=("TPU v5 lite", "TPU v5e"),
            one_core=True,
            sparse_cores=False,
            scoped_vmem_kib=32768,
        ),
        Chip(
            kind="v5p",
            peak_flops=459e12,  # [cloud] 459 TFLOPs
            hbm_bytes=95 * GIB,  # [cloud] 95 GiB
            hbm_bandwidth=2.765e12,  # [cloud] 2765 GBps
            clock=1.75e9,  # [clock] 2 cores * 4 units * 128^2 * 2 * 1.75 GHz = 459 TFLOP/s
            link_bandwidth=90e9,  # [scaling] 9e10; [cloud] 1200 GBps both ways on 6 links: 100e9
            dcn_bandwidth=6.25e9,  # [scaling] 6.25e9 per TPU; [cloud] 50 Gbps per chip: the same
            host_bandwidth=16e9,  # [scaling] the same
            torus_axes=3,
            wrap_multiple=4,
            price=4.20,
            compiler_kind="v5",
            compiler_config="megacore",
            device_kinds=("TPU v5", "TPU v5p"),
            one_core=False,
            sparse_cores=False,
            scoped_vmem_kib=32768,
        ),
        Chip(
            kind="v6e",
            peak_flops=918e12,  # [cloud] 918 TFLOPs
            hbm_bytes=32 * GIB,  # [cloud] 32 GB
            hbm_bandwidth=1.640e12,  # [cloud] 1638 GBps (an earlier version of the page: 1640 GBps)
            # [clock] With the two units of 256^2 of [cloud] the peak would need 3.5 GHz; in the compiler's cycles at
            # 1.75 GHz a large product reaches 87 % of it.
            clock=1.75e9,
            link_bandwidth=90e9,  # [scaling] 9e10; [cloud] 800 GBps both ways on 4 links: 100e9
            dcn_bandwidth=12.5e9,  # [scaling] 12.5e9; [cloud] 4 x 200 Gbps for the 8 chips of a host: the same
            host_bandwidth=32e9,  # [scaling] 32 GB per second
            torus_axes=2,
            wrap_multiple=16,
            price=2.70,
            compiler_kind="v6e",
            compiler_config="default",
            device_kinds=("TPU v6 lite", "TPU v6e"),
            one_core=True,
            sparse_cores=True,
            scoped_vmem_kib=65536,
        ),
        Chip(
            kind="tpu7x",
            peak_flops=2307e12,  # [cloud] 2307 TFLOPs
            hbm_bytes=192 * GIB,  # [cloud] 192 GiB
            hbm_bandwidth=7.380e12,  # [cloud] 7380 GBps
            # Not published; assumed, as 2 devices * 4 units * 256^2 * 2 * 2.2 GHz = 2307 TFLOP/s
            clock=2.2e9,
            link_bandwidth=90e9,  # [cloud] 1200 GBps both ways on 6 links: 100e9; 90 % of it, as on v5p
            dcn_bandwidth=12.5e9,  # [cloud] 100 Gbps per chip
            host_bandwidth=32e9,  # not published; as on v6e
            torus_axes=3,
            wrap_multiple=4,
            price=12.00,
            compiler_kind="tpu7x",
            compiler_config="default",
            device_kinds=("TPU7x",),
            one_core=False,
            sparse_cores=True,
            scoped_vmem_kib=65536,
            devices=2,
            die_bandwidth=540e9,  # [cloud] six times an ICI link
        ),
    )
}

# Dense bfloat16 operations per second of NVIDIA GPUs, by a part of the device's name (`jax.Device.device_kind`, also
# PyTorch's name); the first match counts. From the data sheets, which give twice as much, with sparsity, for H100
# (1,979 TFLOP/s as SXM, 1,671 as NVL, 1,513 as PCIe), H200 (1,979 as SXM, 1,671 as NVL) and B200 (4,500).
GPU_PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H200 NVL", 836e12),
    ("H200", 989e12),
    ("H100 NVL", 836e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`; None if it is not a TPU of the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of one device (a chip, or a GPU), or None if they are not known (CPUs)."""
    if chip := chip_of(device_kind):
        return chip.peak_flops / chip.devices
    return next((peak for name, peak in GPU_PEAK_FLOPS if name in device_kind), None)
