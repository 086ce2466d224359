"""Folders that are not what they say: changed, foreign, of other kinds; and releases replaced, compared, recorded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import from_torch, manifest, mapping, parity, tensor_files, to_torch
from qwenvl_jax.conversion.stored_tensors import open_checkpoint
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime.errors import UserError


@pytest.fixture
def copy_of(released: Path, tmp_path: Path) -> Any:
    return shutil.copytree(released, tmp_path / "copy", dirs_exist_ok=True)


def convert(*arguments: Any, **options: Any) -> Any:
    command = [sys.executable, "-m", "qwenvl_jax.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


# Verification runs no code of a folder


def test_code_in_a_release_never_runs(copy_of: Path, tokenizer: Any, tmp_path: Path) -> None:
    """`verify` detects the change; even without a manifest to detect it, our code runs."""
    trace = tmp_path / "trace"
    for name in ("modeling_qwen.py", "configuration_qwen.py"):
        with (copy_of / name).open("a") as file:
            file.write(f"\nopen({str(trace)!r}, 'w').close()\n")
    run = convert("verify", f"--release={copy_of}")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "the bytes of configuration_qwen.py" in run.stderr and not trace.exists()
    for name in (manifest.MANIFEST, manifest.TRAINING_CONFIG):
        (copy_of / name).unlink()  # now it looks like a folder of others
    params, config = from_torch.open_release(copy_of)
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)[:2]
    report = parity.verify(params, config, copy_of, tokenizer, prompts, max_new_tokens=2)
    assert report["passed"] and report["manifest"] == "none" and report["code"] == "of qwenvl_jax"
    assert not trace.exists()
    report = parity.verify(params, config, copy_of, tokenizer, prompts, max_new_tokens=2, trust_release_code=True)
    assert report["passed"] and report["code"] == "of the release" and trace.exists()


def _write(name: str, content: Any) -> Any:
    return lambda folder: (folder / name).write_text(content)


CHANGES = {
    "code": (_write("visual.py", "pass"), "the bytes of visual.py"),
    "vocabulary": (_write("tokenizer.model", "x"), "the bytes of tokenizer.model"),
    "config": (lambda f: _edit(f / "config.json", "rotary_emb_base", 20000), "the bytes of config.json"),
    "generation": (lambda f: _edit(f / "generation_config.json", "top_p", 1), "the bytes of generation_config.json"),
    "missing": (lambda f: (f / "visual.py").unlink(), "lacks visual.py, which its manifest lists"),
    "extra code": (_write("evil.py", "pass"), "contains evil.py, which its manifest does not list"),
    "extra weights": (_write("model.safetensors", "x"), r"contains model\.safetensors, which"),
    "extra folder": (lambda f: (f / "custom_generate").mkdir(), "contains custom_generate, which"),
    "link out": (
        lambda f: ((f / "visual.py").unlink(), (f / "visual.py").symlink_to("/etc/hostname")),
        "the bytes of visual.py",
    ),
    "link to a device": (
        lambda f: ((f / "NOTICE").unlink(), (f / "NOTICE").symlink_to("/dev/zero")),
        "the bytes of NOTICE",
    ),
    "manifest names a way out": (
        lambda f: _edit(f / "manifest.json", "files", {"../visual.py": {"sha256": "", "bytes": 1}}),
        "is not the manifest of a release",
    ),
    "manifest is a list": (_write("manifest.json", "[]"), "is not the manifest of a release"),
    "scope is a list": (lambda f: _edit(f / "manifest.json", "component", []), "is not the manifest"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "was not finished or not completely copied"),
    "index names a way out": (
        lambda f: _edit(f / tensor_files.INDEX_NAME, "weight_map", {"a": "../x.safetensors"}),
        "which is not a file in the same folder",
    ),
    "index leaves a tensor out": (
        lambda f: _edit(f / tensor_files.INDEX_NAME, "weight_map", {}),
        "which its manifest does not list|lacks the tensor",
    ),
}


def _edit(path: Path, key: Any, value: Any) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_release_is_refused(copy_of: Path, change: Any) -> None:
    change[0](copy_of)
    with pytest.raises(UserError, match=change[1]):
        manifest.verify_manifest(copy_of)


def test_what_is_for_people_may_be_added(copy_of: Path) -> None:
    listed = manifest.verify_manifest(copy_of)
    assert listed and listed[0] == "all"
    (copy_of / "README.md").write_text("edited")
    for name in ("LICENSE.txt", ".gitattributes", "notes.md"):
        (copy_of / name).write_text("")
    assert manifest.verify_manifest(copy_of) == listed
    blobs = copy_of.parent / "blobs"  # as the cache of a hub lays folders out
    blobs.mkdir()
    for path in copy_of.iterdir():
        os.rename(path, blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert manifest.verify_manifest(copy_of) == listed


# Hostile safetensors


def _header(content: Any, body: bytes = b"\0" * 8) -> Any:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


def _about(shape: Any, start: int, end: int, dtype: Any = "F32") -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "payload,message",
    [
        (b"", "not a safetensors file"),
        (struct.pack("<Q", 2**63), "longer than the file"),
        (_header(b"[]"), "not a JSON object"),
        (_header(b"[" * 100_000), "not a safetensors file"),
        (_header(b'{"a": ' + json.dumps(_about([2], 0, 8)).encode() + b', "a": 1}'), "appears twice"),
        (_header(b"\xff\xfe{\0}\0"), "not a safetensors file"),
        (_header({"a": 5}), "header of .* is damaged"),
        (_header({"a": _about([2], -8, 0)}), "whole numbers"),
        (_header({"a": _about([-2], 0, 8)}), "whole numbers"),
        (_header({"a": _about([True, 2], 0, 8)}), "whole numbers"),
        (_header({"a": _about([2.0], 0, 8)}), "whole numbers"),
        (_header({"a": _about([2**40, 2**40], 0, 8)}), "does not match its shape"),
        (_header({"a": _about([2**33] * 2, 0, 0)}), "does not match its shape"),
        (_header({"a": _about([1] * 17, 0, 4)}), "17 axes are too many"),
        (_header({"a": _about([2], 0, 8, "I32")}), "only F32, BF16 and F16"),
        (_header({"a": _about([2], 0, 8, ["F32"])}), "whole numbers"),
        (_header({"a": _about([4], 0, 16)}), "truncated"),
        (_header({"a": _about([2], 0, 8), "b": _about([2], 0, 8)}), "does not begin where another tensor ends"),
        (_header({"a": _about([1], 4, 8)}), "does not begin where another tensor ends"),
        (_header({"a": _about([1], 0, 4)}), "4 bytes longer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "is a Git-LFS pointer.*git lfs pull"),
    ],
)
def test_hostile_safetensors(tmp_path: Path, payload: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(payload)
    with pytest.raises(UserError, match=message):
        open_checkpoint(path)


# Kinds of folders

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


@pytest.mark.parametrize(
    "files,message",
    [
        ({"pytorch_model.bin": POINTER}, r"pytorch_model\.bin is a Git-LFS pointer.*git lfs pull"),
        ({"model.safetensors": POINTER}, r"model\.safetensors is a Git-LFS pointer"),
        ({"model.safetensors.index.json": POINTER}, r"index\.json is a Git-LFS pointer"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "Qwen/Qwen-VL-Chat"}', "adapter_model.bin": ""},
            "an adapter .* of Qwen/Qwen-VL-Chat.*merge_and_unload",
        ),
        ({"adapter_config.json": "[]"}, "an adapter .* of another model"),
        (
            {"config.json": '{"quantization_config": {"quant_method": "gptq"}}', "model.safetensors": ""},
            r"is quantised \(gptq\).*Qwen-VL-Chat-Int4",
        ),
        ({"config.json": '{"quantization_config": {"load_in_4bit": true}}'}, r"is quantised \(int4\)"),
        ({"config.json": "{}", "quantize_config.json": "{}"}, r"is quantised \(int4\)"),
        ({"model.gguf": ""}, "GGUF files of llama.cpp"),
        ({"model-00001-of-00002.safetensors": ""}, "but no index; copy model.safetensors.index.json"),
        (
            {"pytorch_model.bin.index.json": json.dumps({"weight_map": {k: f"{k}.bin" for k in "abc"}}), "a.bin": ""},
            "2 of the 3 shards that .* names are missing; copy b.bin and 1 more",
        ),
        ({"notes.txt": ""}, "contains no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, files: Any, message: str, config: Config) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        from_torch.import_towers(config, tmp_path / "run", decoder=folder)
    if "adapter" in message or "quantised" in message:
        with pytest.raises(UserError, match=message):
            from_torch.import_release(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pointer_for_a_vocabulary(copy_of: Path, tmp_path: Path) -> None:
    (copy_of / "tokenizer.model").write_text(POINTER)
    with pytest.raises(UserError, match=r"tokenizer\.model is a Git-LFS pointer"):
        from_torch.import_release(copy_of, tmp_path / "run")


def test_the_openclip_folder_as_downloaded(config: Config, tmp_path: Path) -> None:
    """It holds the same weights for transformers besides, sharded and under other names."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    save_file({"vision_model.x": torch.zeros(1)}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"vision_model.x": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"visual.conv1.weight": torch.zeros(2, 2)}, folder / "open_clip_pytorch_model.bin")
    assert set(open_checkpoint(folder)) == {"visual.conv1.weight"}


def test_tensors_twice_or_of_other_kinds_in_a_bin_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for content, message in (
        ({"a": torch.zeros(2), "module.a": torch.ones(2)}, "has the tensor a twice"),
        ({"a": torch.eye(3).to_sparse()}, "non-contiguous form"),
        ({"a": torch.zeros(1).expand(5)}, "non-contiguous form"),
        ({1: torch.zeros(2)}, "not a state_dict"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            open_checkpoint(path)


# Lineage


def test_the_lineage_of_an_import_says_what_was_imported(released: Path, config: Config, tmp_path: Path) -> None:
    from_torch.import_release(released, tmp_path / "run")
    digest = hashlib.sha256((released / "manifest.json").read_bytes()).hexdigest()
    for about in lineage.read_lineage(tmp_path / "run")["components"].values():
        about = about["from"]
        assert about["stage"] == "import" and about["path"] == str(released)
        assert about["files"]["manifest.json"]["sha256"] == digest
    foreign = shutil.copytree(released, tmp_path / "decoder")
    (foreign / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        from_torch.import_towers(config, tmp_path / "other", decoder=foreign)


# Replacing a release


DYING = """
import os, sys
renames, rename = [], os.rename
def dying(*arguments, **options):
    if "release" in os.path.basename(str(arguments[0])) and os.path.isdir(arguments[0]):
        renames.append(1)
        if len(renames) == KILLED_AT:
            os.kill(os.getpid(), 9)
    return rename(*arguments, **options)
os.rename = os.replace = dying
"""


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_kill_while_a_release_is_replaced_leaves_a_whole_one(released: Path, tmp_path: Path, killed_at: str) -> None:
    from_torch.import_release(released, tmp_path / "run")
    folder = tmp_path / "out"
    folder.mkdir()
    old = shutil.copytree(released, folder / "release")
    (old / "old.md").write_text("")  # tells the old one from the new
    code = (
        DYING
        + "from qwenvl_jax import convert\nconvert.commandline.run(convert.main, positional=1, needs_config=False)"
    )
    code = code.replace("KILLED_AT", str(killed_at))
    arguments = ["release", f"--workdir={tmp_path}/run", f"--output={old}", "--noparity"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr[-1000:]
    whole = [path for path in folder.iterdir() if path.is_dir() and (path / "manifest.json").exists()]
    assert len(whole) == 2 and all(manifest.verify_manifest(path) for path in whole)
    assert any((path / "old.md").exists() for path in whole)
    assert (old in whole) == (killed_at == 1)
    done = convert("release", f"--workdir={tmp_path}/run", f"--output={old}", "--noparity")
    assert done.returncode == 0 and manifest.verify_manifest(old) and not (old / "old.md").exists()


# Comparison in bfloat16


@pytest.mark.parametrize("scope", ["all", "vision"])
def test_untrained_weights_pass_in_bfloat16_and_wrong_ones_do_not(
    config: Config, tokenizer: Any, tmp_path: Path, scope: str
) -> None:
    """Their logits are so near to one another that both sides choose differently within the rounding."""
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    towers = {name: fresh[name] for name in mapping.RELEASE_SCOPES[scope].towers}
    folder = to_torch.release(towers, config, tmp_path / "release", scope=scope)
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)
    options: dict[str, Any] = {"max_new_tokens": 2, "compare_in": "bfloat16"}
    report = parity.verify(fresh, config, folder, tokenizer, prompts, **options)
    assert report["passed"], {key: value for key, value in report.items() if key != "details"}
    block = fresh["vit"]["blocks"]["attn"]["qkv"]
    kernel = np.asarray(block["kernel"])[:, :, ::-1]  # q, k and v exchanged
    attention = {**fresh["vit"]["blocks"]["attn"], "qkv": {**block, "kernel": kernel}}
    wrong = {**fresh, "vit": {**fresh["vit"], "blocks": {**fresh["vit"]["blocks"], "attn": attention}}}
    report = parity.verify(wrong, config, folder, tokenizer, prompts, **options)
    assert not report["passed"]
