#!/usr/bin/env python3
"""GGUF files of Hugging Face directories, as llama.cpp's converter writes them, with the writer and the names of the
package gguf on PyPI (llama.cpp's converter itself is not there). Needs gguf and numpy, nothing else.

    python tools/golden/gguf_files.py DIR OUT.gguf [--type f32|f16|bf16|q8_0|...] [--but NAME=TYPE,...] [--parts N]

tests/data/gguf/layers_in_turn.gguf, whose layers are of one type and the other, is --type q8_0,q4_0 of what `ferry
make-model --preset tiny --hidden 64 --inter 32 --heads 4 --kv-heads 2 --head-dim 32 --layers 3 --experts 5 --topk 2
--vocab 300` writes, with an empty tokenizer_config.json.

tests/data/gguf/mixed_types.gguf, whose queries, keys and values are of different types, is --type q4_k --but
attn_v=q6_k,blk.1.attn_q=q8_0,blk.1.attn_k=bf16,blk.1.attn_v=f32,blk.2.attn_v=q4_k,attn_output=q4_0,ffn_down_exps=q4_0,output=q6_k
of --preset tiny --hidden 256 --inter 32 --heads 12 --kv-heads 3 --head-dim 8 --layers 4 --experts 3 --topk 2 --vocab 264
likewise.

What has two dimensions or more becomes --type where its rows allow, as the file has it where no type is named; the
rest and the router become F32, as in published files. Metadata that GGUF does not have is left out, so a model whose
config.json says there what llama.cpp takes for granted otherwise is another model afterwards.
"""

import argparse
import json
import struct
from pathlib import Path

import gguf
import k_blocks
import numpy as np

BF16 = gguf.GGMLQuantizationType.BF16
F16 = gguf.GGMLQuantizationType.F16
F32 = gguf.GGMLQuantizationType.F32
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Tensor:
    """Elements, and whether 16 bits of them are bf16's."""

    def __init__(self, data: np.ndarray, bf16: bool = False) -> None:
        self.data, self.bf16 = data, bf16

    def changed(self, change) -> "Tensor":
        return Tensor(np.ascontiguousarray(change(self.data)), self.bf16)

    def floats(self) -> np.ndarray:
        return (self.data.astype(np.uint32) << 16).view(np.float32) if self.bf16 else self.data.astype(np.float32)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, fields in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = fields["data_offsets"]
        array = np.frombuffer(data[8 + length + begin : 8 + length + end], DTYPES[fields["dtype"]])
        tensors[name] = Tensor(array.reshape(fields["shape"]), fields["dtype"] == "BF16")
    return tensors


def read_directory(directory: Path) -> tuple[dict, dict[str, Tensor]]:
    tensors = {}
    for path in sorted(directory.glob("model*.safetensors")):
        tensors |= read_safetensors(path)
    return json.loads((directory / "config.json").read_text()), tensors


# --- what each architecture does to tensors, and what it says of itself beside what all say ---


def stacked(tensors: dict, layer: int, count: int, names: list[str], pattern: str) -> dict:
    """Experts of a layer, each kind in one tensor."""
    result = {}
    for name in names:
        parts = [tensors.pop(pattern.format(layer=layer, expert=e, name=name)) for e in range(count)]
        merged = pattern.format(layer=layer, expert="@", name=name).replace(".@.", ".")
        result[merged] = Tensor(np.stack([p.data for p in parts]), parts[0].bf16)
    return result


def stack_experts(config: dict, tensors: dict, block: str = "mlp", names=("gate_proj", "up_proj", "down_proj")) -> None:
    pattern = "model.layers.{layer}." + block + ".experts.{expert}.{name}.weight"
    for layer in range(config["num_hidden_layers"]):
        count = 0
        while pattern.format(layer=layer, expert=count, name=names[0]) in tensors:
            count += 1
        if count:
            tensors |= stacked(tensors, layer, count, list(names), pattern)


def each(tensors: dict, ending: str, change) -> None:
    for name in [n for n in tensors if n.endswith(ending)]:
        tensors[name] = tensors[name].changed(change)


def rename(tensors: dict, old: str, new: str) -> None:
    for name in [n for n in tensors if old in n]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def qwen(config: dict, tensors: dict, writer) -> None:
    stack_experts(config, tensors)
    each(tensors, "shared_expert_gate.weight", lambda a: a.squeeze())
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def olmoe(config: dict, tensors: dict, writer) -> None:
    stack_experts(config, tensors)


def turned(data: np.ndarray, heads: int) -> np.ndarray:
    """Rows as neighbours turn, of rows whose halves do."""
    return data.reshape(heads, 2, data.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(data.shape)


def mixtral(config: dict, tensors: dict, writer) -> None:
    each(tensors, "q_proj.weight", lambda a: turned(a, config["num_attention_heads"]))
    each(tensors, "k_proj.weight", lambda a: turned(a, config["num_key_value_heads"]))
    stack_experts(config, tensors, "block_sparse_moe", ("w1", "w2", "w3"))


def shared_experts(config: dict, writer) -> None:
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def score_bias(tensors: dict) -> None:
    rename(tensors, "e_score_correction_bias", "e_score_correction.bias")


def deepseek(config: dict, tensors: dict, writer) -> None:
    shared_experts(config, writer)
    score_bias(tensors)
    stack_experts(config, tensors)
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    plain, turning, value = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    for name in [n for n in tensors if n.endswith("kv_b_proj.weight")]:
        both = tensors.pop(name)
        split = both.data.reshape(heads, plain + value, rank)
        tensors[name.replace("kv_b", "k_b")] = Tensor(np.ascontiguousarray(split[:, :plain].swapaxes(1, 2)), both.bf16)
        tensors[name.replace("kv_b", "v_b")] = Tensor(np.ascontiguousarray(split[:, plain:]), both.bf16)
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + turning)
    writer.add_value_length(rank)
    writer.add_key_length_mla(plain + turning)
    writer.add_value_length_mla(value)
    writer.add_rope_dimension_count(turning)
    scaling = config.get("rope_scaling") or {}
    if "mscale_all_dim" in scaling:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def glm4(config: dict, tensors: dict, writer) -> None:
    shared_experts(config, writer)
    score_bias(tensors)
    stack_experts(config, tensors)
    rope = config.get("rope_parameters") or {}
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5))
    writer.add_rope_dimension_count(int(config["head_dim"] * part))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def dots1(config: dict, tensors: dict, writer) -> None:
    shared_experts(config, writer)
    score_bias(tensors)
    stack_experts(config, tensors)


def ernie(config: dict, tensors: dict, writer) -> None:
    score_bias(tensors)
    each(tensors, "e_score_correction.bias", lambda a: a.squeeze())
    stack_experts(config, tensors)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    writer.add_expert_shared_count(config["moe_num_shared_experts"])


def hunyuan(config: dict, tensors: dict, writer) -> None:
    stack_experts(config, tensors)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"][0])
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"])
    writer.add_expert_shared_count(config["num_shared_expert"][0])


def minimax(config: dict, tensors: dict, writer) -> None:
    score_bias(tensors)
    stack_experts(config, tensors, "block_sparse_moe", ("w1", "w2", "w3"))
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["rotary_dim"])


def gpt_oss(config: dict, tensors: dict, writer) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    rename(tensors, ".sinks", ".sinks.weight")
    for name in [n for n in tensors if ".mlp.experts." in n]:
        together = tensors.pop(name)
        data = together.data if name.endswith("_bias") else together.data.swapaxes(1, 2)
        ending = ".bias" if name.endswith("_bias") else ".weight"
        base = name.removesuffix("_bias")
        kinds = {"gate_up": (("gate", 0), ("up", 1)), "down": (("down", None),)}["gate_up" if "gate_up" in name else "down"]
        for kind, first in kinds:
            own = data if first is None else data[:, first::2]
            new = base.replace("gate_up_proj", kind + "_proj") + ending
            tensors[new] = Tensor(np.ascontiguousarray(own), together.bf16)


def apart(tensors: dict) -> None:
    """Gates and ups of all experts, which lie together."""
    for name in [n for n in tensors if n.endswith(".experts.gate_up_proj")]:
        both = tensors.pop(name)
        half = both.data.shape[1] // 2
        for kind, part in (("gate", both.data[:, :half]), ("up", both.data[:, half:])):
            tensors[name.replace("gate_up_proj", kind + "_proj.weight")] = Tensor(np.ascontiguousarray(part), both.bf16)
    rename(tensors, ".experts.down_proj", ".experts.down_proj.weight")


def delta_net(config: dict, tensors: dict, writer) -> None:
    qwen(config, tensors, writer)
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(key)
    writer.add_ssm_group_count(keys)
    writer.add_ssm_time_step_rank(values)
    writer.add_ssm_inner_size(value * values)
    writer.add_full_attention_interval(config.get("full_attention_interval", 4))
    rope = config.get("rope_parameters") or {}
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    writer.add_rope_dimension_count(int(config["head_dim"] * part))
    for name in list(tensors):
        tensor = tensors[name]
        if name.endswith(".A_log"):
            tensors[name] = Tensor(-np.exp(tensor.floats()))
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            tensors[name] = Tensor(tensor.floats() + np.float32(1))
    each(tensors, "conv1d.weight", lambda a: a.squeeze())
    rename(tensors, ".dt_bias", ".dt_proj.bias")


def qwen3_next(config: dict, tensors: dict, writer) -> None:
    delta_net(config, tensors, writer)
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
    own = values // keys * value
    for name in [n for n in tensors if n.endswith("in_proj_qkvz.weight")]:
        mixed = tensors.pop(name)
        heads = mixed.data.reshape(keys, 2 * key + 2 * own, -1)
        ends = np.cumsum([key, key, own, own])[:-1]
        q, k, v, z = (np.ascontiguousarray(p.reshape(-1, p.shape[-1])) for p in np.split(heads, ends, axis=1))
        prefix = name.removesuffix("in_proj_qkvz.weight")
        tensors[prefix + "in_proj_qkv.weight"] = Tensor(np.concatenate([q, k, v]), mixed.bf16)
        tensors[prefix + "in_proj_z.weight"] = Tensor(z, mixed.bf16)


def qwen35(config: dict, tensors: dict, writer) -> None:
    """Heads of values in the order in which key heads are repeated as a whole."""
    if together := any(n.endswith(".experts.gate_up_proj") for n in tensors):
        apart(tensors)
    delta_net(config, tensors, writer)
    assert together or any(".mlp.experts.gate_proj" in n for n in tensors)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before, value = 2 * keys * config["linear_key_head_dim"], config["linear_value_head_dim"]

    def tiled(data, size, first=0):
        rows = data[first:].reshape(keys, values // keys, size, -1).swapaxes(0, 1).reshape(data[first:].shape)
        return np.concatenate([data[:first], rows])

    each(tensors, "in_proj_qkv.weight", lambda a: tiled(a, value, before))
    each(tensors, "conv1d.weight", lambda a: tiled(a, value, before))
    each(tensors, "in_proj_z.weight", lambda a: tiled(a, value))
    for name in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_proj.bias"):
        each(tensors, name, lambda a: tiled(a, 1))
    each(tensors, "linear_attn.out_proj.weight", lambda a: tiled(a.T, value).T)


def glm_dsa(config: dict, tensors: dict, writer) -> None:
    deepseek(config, tensors, writer)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_indexer_head_count(config["index_n_heads"])
    writer.add_indexer_key_length(config["index_head_dim"])
    writer.add_indexer_top_k(config["index_topk"])


def mistral4(config: dict, tensors: dict, writer) -> None:
    """With gates and ups of all experts in one tensor, as the converter leaves them."""
    deepseek(config, tensors, writer)
    rename(tensors, ".experts.gate_up_proj", ".experts.gate_up_proj.weight")
    rename(tensors, ".experts.down_proj", ".experts.down_proj.weight")
    rope = config["rope_parameters"]
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


ARCHITECTURES = {
    "DeepseekV2ForCausalLM": (gguf.MODEL_ARCH.DEEPSEEK2, deepseek),
    "DeepseekV3ForCausalLM": (gguf.MODEL_ARCH.DEEPSEEK2, deepseek),
    "Dots1ForCausalLM": (gguf.MODEL_ARCH.DOTS1, dots1),
    "Ernie4_5_MoeForCausalLM": (gguf.MODEL_ARCH.ERNIE4_5_MOE, ernie),
    "Glm4MoeForCausalLM": (gguf.MODEL_ARCH.GLM4_MOE, glm4),
    "GlmMoeDsaForCausalLM": (gguf.MODEL_ARCH.GLM_DSA, glm_dsa),
    "GptOssForCausalLM": (gguf.MODEL_ARCH.GPT_OSS, gpt_oss),
    "HunYuanMoEV1ForCausalLM": (gguf.MODEL_ARCH.HUNYUAN_MOE, hunyuan),
    "MiniMaxM2ForCausalLM": (gguf.MODEL_ARCH.MINIMAXM2, minimax),
    "Mistral4ForCausalLM": (gguf.MODEL_ARCH.MISTRAL4, mistral4),
    "MixtralForCausalLM": (gguf.MODEL_ARCH.LLAMA, mixtral),
    "OlmoeForCausalLM": (gguf.MODEL_ARCH.OLMOE, olmoe),
    "Qwen2MoeForCausalLM": (gguf.MODEL_ARCH.QWEN2MOE, qwen),
    "Qwen3_5MoeForCausalLM": (gguf.MODEL_ARCH.QWEN35MOE, qwen35),
    "Qwen3MoeForCausalLM": (gguf.MODEL_ARCH.QWEN3MOE, qwen),
    "Qwen3NextForCausalLM": (gguf.MODEL_ARCH.QWEN3NEXT, qwen3_next),
}


# --- what all have alike ---


def describe(config: dict, writer) -> None:
    def first(*keys):
        return next((config[k] for k in keys if config.get(k) is not None), None)

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if config.get("intermediate_size") is not None:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(first("num_key_value_heads", "num_attention_heads"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if rope.get("type") == "dynamic":  # hunyuan's
        theta *= rope["alpha"] ** (config["head_dim"] / (config["head_dim"] - 2))
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"))
    used = first("num_experts_per_tok", "moe_k", "moe_topk")
    writer.add_expert_used_count(used[0] if isinstance(used, list) else used)
    if config.get("n_group") is not None:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config.get("scoring_func") is not None:
        kind = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(kind.SIGMOID if config["scoring_func"] == "sigmoid" else kind.SOFTMAX)
    if config.get("head_dim") is not None and "kv_lora_rank" not in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


CUTTINGS = {"qwen": "qwen2", "gpt2": "gpt-2", "glm": "glm4", "o200k": "gpt-4o", "deepseek_v2": "deepseek-llm",
            "deepseek_v3": "deepseek-v3"}  # of tests/data/tokenizer_*


def write_tokenizer(directory: Path, vocab: int, pre: str, writer) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    names = {i: t for t, i in tokenizer["model"]["vocab"].items()}
    added = {t["id"]: t for t in tokenizer["added_tokens"]}
    kind = gguf.TokenType
    tokens, kinds = [], []
    for i in range(vocab):
        if i in added:
            tokens.append(added[i]["content"])
            kinds.append(kind.CONTROL if added[i]["special"] else kind.USER_DEFINED)
        else:
            tokens.append(names.get(i, f"[PAD{i}]"))
            kinds.append(kind.NORMAL if i in names else kind.UNUSED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    ids = {t: i for i, t in enumerate(tokens)}
    model = json.loads((directory / "config.json").read_text())
    for name, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        id = model.get(name + "_id")  # golden models end on another token than their tokenizer names
        if id is None:
            id = ids.get(config.get(name))
        if id is not None:
            add(id)
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])


def stored(tensor: Tensor, kind, writer, name: str, elements: bool) -> None:
    """One tensor in the type wanted, or in its own; of blocks what they stand for, where elements are wanted."""
    plain = tensor.data.ndim == 1 or name.endswith("ffn_gate_inp.weight")
    if plain:
        kind = F32
    if kind is None:
        kind = BF16 if tensor.bf16 else F16 if tensor.data.dtype == np.float16 else F32
    if tensor.data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] != 0:
        kind = F16
    if kind == BF16:
        data = tensor.data if tensor.bf16 else gguf.quants.quantize(tensor.floats(), kind)
        writer.add_tensor(name, data.view(np.uint8), raw_dtype=kind)
    elif kind in (F32, F16):
        writer.add_tensor(name, tensor.floats().astype(np.float32 if kind == F32 else np.float16))
    else:
        blocks = k_blocks.quantize(tensor.floats(), kind)
        if elements:
            writer.add_tensor(name, gguf.quants.dequantize(blocks, kind).astype(np.float32))
        else:
            writer.add_tensor(name, blocks, raw_dtype=kind)


def of_layer(kinds, name: str, but: dict):
    """The type that `but` has for the tensor, the longest name first; of several the one whose turn it is in its layer."""
    for part in sorted(but, key=len, reverse=True):
        if f".{part}." in f".{name}":
            return but[part]
    if not isinstance(kinds, list):
        return kinds
    parts = name.split(".")
    return kinds[int(parts[1]) % len(kinds) if parts[0] == "blk" else 0]


def write(directory: Path, out: Path, kind=None, pre: str = "qwen2", parts: int = 1, elements: bool = False,
          but: dict | None = None) -> None:
    config, tensors = read_directory(directory)
    arch, own = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    describe(config, writer)
    own(config, tensors, writer)
    if parts > 1:
        writer.split_max_tensors = -(-len(tensors) // parts)
    write_tokenizer(directory, config["vocab_size"], pre, writer)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        if config.get("tie_word_embeddings") and name == "lm_head.weight":
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ValueError(f"{name}: no name in GGUF")
        stored(tensor, of_layer(kind, new, but or {}), writer, new, elements)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default=None, help="of matrices: f32, f16, bf16, q8_0, q4_0, q4_1, ...; several: of layers in turn")
    parser.add_argument("--but", default="", help="types of other tensors than the rest, such as attn_v=q6_k,blk.0.ffn_down=q8_0")
    parser.add_argument("--pre", default="qwen2", help="name of how texts are cut into words")
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    kinds = [gguf.GGMLQuantizationType[kind.upper()] for kind in args.type.split(",")] if args.type else [None]
    but = {name: gguf.GGMLQuantizationType[kind.upper()] for name, kind in (p.split("=") for p in args.but.split(",") if p)}
    write(args.directory, args.out, kinds if len(kinds) > 1 else kinds[0], args.pre, args.parts, but=but)


if __name__ == "__main__":
    main()
