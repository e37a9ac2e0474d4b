"""Models in GGUF files beside the Hugging Face directories that they were made of: the same tokens, and where nothing
was rounded on the way the same logits, bit by bit. The files are written by the package gguf (tools/golden/gguf_files.py)."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf is not installed: no files in that form are written")

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FERRY = pathlib.Path(os.environ["FERRY_BUILD_DIR"]) / "ferry"

sys.path.insert(0, str(ROOT / "tools" / "golden"))
import gguf_files  # noqa: E402


def answers(model, ids, *flags, tokens=12):
    """Of every prompt the tokens, and a hash of all logits."""
    done = subprocess.run([FERRY, "generate", "--json", "--quiet", "--model", model, "--input-ids", ids, "--max-new-tokens",
                           str(tokens), "--transport", "inproc", "--threads", "1", *flags], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    return [(r["output_ids"], r["logits_sha256"]) for r in json.loads(done.stdout)["results"]]


def prompts(golden, tmp_path):
    file = tmp_path / "ids.txt"
    lines = [p["input_ids"] for p in json.loads((DATA / golden / "golden.json").read_text())["prompts"]]
    file.write_text("".join(",".join(map(str, ids)) + "\n" for ids in lines))
    return file


def directory_as_published(golden, tmp_path, fields):
    """The golden model with fields as llama.cpp takes them for granted."""
    copy = tmp_path / golden
    shutil.copytree(DATA / golden, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | fields))
    return copy


# What GGUF does not store is as in all published models.
MODELS = {
    "deepseek_v2_groups_bf16": {},
    "deepseek_v2_lite": {},
    "deepseek_v3": {},
    "dots1": {"sliding_window": None, "scoring_func": "sigmoid"},
    "ernie4_5_moe": {},
    "glm4_moe": {},
    "glm4_moe_air_bf16": {},
    "glm_moe_dsa": {},
    "glm_moe_dsa_sparse": {},
    "gpt_oss": {"swiglu_limit": 7.0},
    "kimi_k2": {"scoring_func": None},
    "minimax_m2": {},
    "mistral4": {},
    "mixtral": {},
    "olmoe": {},
    "qwen2_new_config": {},
    "qwen2_untied": {},
    "qwen3_bf16": {},
    "qwen3_f16_tied_sharded": {"norm_topk_prob": True},
    "qwen3_untied": {},
}
# A number that GGUF stores rounded to f32, or another way than config.json: hunyuan's theta, a delta net's rates.
NEARLY = {
    "hunyuan_v1_moe": {},
    "qwen3_5_moe_text": {"full_attention_interval": 2},
    "qwen3_next_bf16": {"norm_topk_prob": True},
}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "MXFP4"])
def test_blocks_are_what_the_package_makes_of_them(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    files = tmp_path / "blocks.gguf", tmp_path / "elements.gguf"
    gguf_files.write(DATA / "kimi_k2", files[0], kind)
    blocks = [t for t in gguf.GGUFReader(files[0]).tensors if t.tensor_type == kind]
    assert len(blocks) > 10
    gguf_files.write(DATA / "kimi_k2", files[1], kind, elements=True)
    ids = prompts("kimi_k2", tmp_path)
    expected = answers(files[1], ids, "--weights", "f32")
    assert answers(files[0], ids, "--weights", "f32") == expected
    as_bf16 = answers(files[1], ids, "--weights", "bf16")
    assert as_bf16 != expected
    assert answers(files[0], ids) == as_bf16  # held as blocks
    assert answers(files[0], ids, "--weights", "bf16") == as_bf16


@pytest.mark.parametrize("flags", [(), ("--ep", "2"), ("--ep", "2", "--tp", "2"), ("--ep", "2", "--enable-eplb", "--eplb-canary",
                                   "--eplb-rebalance-num-iterations", "4", "--eplb-min-gain", "0")])
def test_layers_whose_blocks_are_of_two_sizes_give_the_bytes_of_bf16(flags, tmp_path):
    file = DATA / "gguf" / "layers_in_turn.gguf"
    ids = tmp_path / "ids.txt"
    ids.write_text("1,2,3,4,5,6,7\n200,100,50,25\n")
    assert answers(file, ids, *flags, tokens=24) == answers(file, ids, "--weights", "bf16", tokens=24)


# Of queries, keys and values; of gate, up and down; of both parts of a latent; of a delta net's projections.
MIXED = {
    "qwen3_bf16": {"attn_q": "Q8_0", "attn_v": "Q4_0"},
    "glm4_moe_air_bf16": {"attn_k": "F32", "attn_v": "Q8_0", "ffn_down_exps": "Q8_0", "ffn_up_shexp": "Q8_0"},
    "kimi_k2": {"attn_kv_a_mqa": "Q8_0", "ffn_down": "Q4_1"},
    "deepseek_v2_groups_bf16": {"attn_kv_a_mqa": "Q8_0", "attn_q": "F16"},
    "qwen3_next_bf16": {"attn_gate": "Q8_0", "attn_k": "Q4_0", "token_embd": "Q8_0"},
}


@pytest.mark.parametrize("golden", MIXED)
def test_tensors_of_one_matrix_may_be_of_several_types(golden, tmp_path):
    file = tmp_path / "model.gguf"
    but = {name: gguf.GGMLQuantizationType[kind] for name, kind in MIXED[golden].items()}
    gguf_files.write(DATA / golden, file, gguf.GGMLQuantizationType.BF16, but=but)
    ids = prompts(golden, tmp_path)
    expected = answers(file, ids, "--weights", "bf16")
    assert answers(file, ids) == expected
    assert answers(file, ids, "--ep", "2", "--tp", "2") == expected
    assert answers(file, ids, "--ep", "3") == expected


@pytest.mark.parametrize("flags", [(), ("--ep", "2"), ("--ep", "3"), ("--ep", "2", "--tp", "2"), ("--ep", "3", "--tp", "3")])
def test_queries_keys_and_values_of_several_types_give_the_bytes_of_bf16(flags, tmp_path):
    file = DATA / "gguf" / "mixed_types.gguf"
    ids = tmp_path / "ids.txt"
    ids.write_text("1,2,3,4,5,6,7\n200,100,50,25\n")
    assert answers(file, ids, *flags) == answers(file, ids, "--weights", "bf16")


def test_parts_are_one_model(tmp_path):
    gguf_files.write(DATA / "qwen3_untied", tmp_path / "m.gguf", parts=3)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    ids = prompts("qwen3_untied", tmp_path)
    assert answers(tmp_path / names[0], ids) == answers(DATA / "qwen3_untied", ids)


def test_quantized_directory_of_a_file(tmp_path):
    gguf_files.write(DATA / "mixtral", tmp_path / "m.gguf")
    for source, out in ((tmp_path / "m.gguf", "from_file"), (DATA / "mixtral", "from_directory")):
        subprocess.run([FERRY, "quantize", "--quiet", "--model", source, "--weights", "int8", "--out", tmp_path / out],
                       check=True, timeout=60)
    ids = prompts("mixtral", tmp_path)
    assert answers(tmp_path / "from_file", ids) == answers(tmp_path / "from_directory", ids)
    assert (tmp_path / "from_file" / "tokenizer.json").exists()


@pytest.mark.parametrize("golden", MODELS | NEARLY)
def test_same_as_the_directory(golden, tmp_path):
    directory = directory_as_published(golden, tmp_path, (MODELS | NEARLY)[golden])
    file = tmp_path / "model.gguf"
    gguf_files.write(directory, file)
    ids = prompts(golden, tmp_path)
    expected, found = answers(directory, ids), answers(file, ids)
    assert [r[0] for r in found] == [r[0] for r in expected]
    if golden in MODELS:
        assert found == expected
