#!/usr/bin/env python3
"""Golden data for the C++ tests: tiny random checkpoints with transformers' own answers.

    python tools/make_golden.py [--out tests/data] [--only NAME ...]

Per model case it writes DIR/<case>/ in Hugging Face layout plus
    golden.json         prompts (input_ids, 32 greedy ids, tensor names) and how robust they are
    golden.safetensors  logits.N        f32 [prompt_len, vocab]  after every prompt position
                        greedy_logits.N f32 [32, vocab]          rows that chose each greedy token
and per tokenizer DIR/tokenizer_<name>/ with tokenizer.json, golden.json (encode and decode) and
decode.json (id slices which may cut a character in half).

Everything is seeded. Logits come from the checkpoint as read back from disk, in f32 on one thread, so
they also answer for the files themselves (rounding to bf16/f16, shards, config form).
"""

import argparse
import base64
import json
import os
import shutil
import tempfile
from pathlib import Path

import tiktoken
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

GREEDY = 32

# The pre-tokenizer that Qwen checkpoints carry in tokenizer.json.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Those of the other families, which cut before ByteLevel: facts of their tokenizer.json.
LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
O200K_SPLIT = (rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}*{LETTERS[1]}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}+{LETTERS[1]}*{ENDING}"
               rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}")
GLM_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
             rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")
SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK_V3_SPLIT = (SIGNS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES)
SPLITS = {
    "o200k": lambda: split_steps(O200K_SPLIT),  # gpt-oss, Llama 4
    "glm": lambda: split_steps(GLM_SPLIT),
    "deepseek_v3": lambda: split_steps(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK_V3_SPLIT),
    "deepseek_v2": lambda: split_steps(
        r"[\r\n]", r"\s?\p{L}+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", digits=True),
}
KIMI_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_SPLIT = (rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}*{KIMI_LOWER}+{ENDING}"
              rf"|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}+{KIMI_LOWER}*{ENDING}"
              rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NOT_SPECIAL = "<tool_call>"


def yarn(theta: float, factor: float, **more) -> dict:
    """Positions stretched from 64 to 512, in the form of transformers 5."""
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 64, **more}


# One row a checkpoint. Between them: hidden sizes that are no multiple of 64, odd head counts, E that
# 2, 3 and 4 ranks do not divide, every storage type, both forms of config.json, dense layers among
# the sparse ones. `new` keeps config.json as this transformers writes it.
CASES = {
    "qwen2_untied": dict(
        arch="qwen2", hidden_size=72, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2,
        num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=56,
        norm_topk_prob=False, rope_theta=1000000.0, vocab_size=331, prompts=(1, 17, 40)),
    "qwen2_tied_sharded": dict(
        arch="qwen2", hidden_size=40, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
        num_experts=7, num_experts_per_tok=4, moe_intermediate_size=24, shared_expert_intermediate_size=48,
        norm_topk_prob=True, rope_theta=50000.0, vocab_size=320, tie_word_embeddings=True,
        mlp_only_layers=[1], shard="60KB", prompts=(1, 5, 40)),
    "qwen2_bf16_sparse_step": dict(
        arch="qwen2", hidden_size=84, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=4,
        num_experts=6, num_experts_per_tok=1, moe_intermediate_size=36, shared_expert_intermediate_size=28,
        norm_topk_prob=False, rope_theta=10000.0, vocab_size=320, decoder_sparse_step=2, dtype="bfloat16",
        prompts=(5, 17, 40)),
    "qwen2_new_config": dict(
        arch="qwen2", hidden_size=88, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2,
        num_experts=9, num_experts_per_tok=4, moe_intermediate_size=20, shared_expert_intermediate_size=76,
        norm_topk_prob=False, rope_theta=250000.0, rms_norm_eps=1e-5, vocab_size=320, dtype="bfloat16", new=True,
        prompts=(1, 17)),
    "qwen3_untied": dict(
        arch="qwen3", hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, num_experts=7, num_experts_per_tok=4, moe_intermediate_size=24,
        norm_topk_prob=True, rope_theta=1000000.0, vocab_size=331, prompts=(1, 17, 40)),
    "qwen3_f16_tied_sharded": dict(
        arch="qwen3", hidden_size=40, num_attention_heads=3, num_key_value_heads=1, head_dim=32,
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=1, moe_intermediate_size=56,
        norm_topk_prob=False, rope_theta=10000.0, vocab_size=320, tie_word_embeddings=True,
        dtype="float16", shard="40KB", prompts=(5, 40)),
    "qwen3_new_config_mixed": dict(
        arch="qwen3", hidden_size=56, num_attention_heads=5, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=4, num_experts=9, num_experts_per_tok=2, moe_intermediate_size=28,
        norm_topk_prob=True, rope_theta=75000.0, vocab_size=307, attention_bias=True,
        decoder_sparse_step=2, mlp_only_layers=[3], new=True, prompts=(17, 40)),
    "qwen3_bf16": dict(
        arch="qwen3", hidden_size=136, num_attention_heads=4, num_key_value_heads=2, head_dim=48,
        num_hidden_layers=2, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
        norm_topk_prob=True, rope_theta=5000000.0, vocab_size=300, dtype="bfloat16", prompts=(1, 5, 40)),
    # Those below carry their seeds with them, so that their order means nothing.
    "mixtral": dict(
        arch="mixtral", seed=101, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, num_local_experts=7, num_experts_per_tok=2, intermediate_size=24,
        rope_theta=1000000.0, rms_norm_eps=1e-5, vocab_size=331, prompts=(1, 17, 40)),
    "mixtral_window_bf16": dict(
        arch="mixtral", seed=102, hidden_size=40, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        num_local_experts=5, num_experts_per_tok=3, intermediate_size=32, rope_theta=10000.0, rms_norm_eps=1e-5,
        sliding_window=11, vocab_size=320, dtype="bfloat16", new=True, prompts=(5, 40)),
    "olmoe": dict(
        arch="olmoe", seed=103, hidden_size=72, num_attention_heads=6, num_key_value_heads=6, num_hidden_layers=2,
        num_experts=9, num_experts_per_tok=4, intermediate_size=24, norm_topk_prob=False, rope_theta=10000.0,
        rms_norm_eps=1e-5, vocab_size=331, eos_token_id=2, pad_token_id=None, prompts=(1, 17, 40)),
    "olmoe_grouped_bf16": dict(
        arch="olmoe", seed=104, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        num_experts=6, num_experts_per_tok=2, intermediate_size=20, norm_topk_prob=True, rope_theta=10000.0,
        rms_norm_eps=1e-5, vocab_size=300, eos_token_id=2, pad_token_id=None, dtype="bfloat16", new=True,
        prompts=(5, 40)),
    "deepseek_v2_lite": dict(
        arch="deepseek_v2", seed=121, hidden_size=72, num_attention_heads=3, num_hidden_layers=2, q_lora_rank=None,
        kv_lora_rank=40, qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=28, n_routed_experts=7,
        num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2, first_k_dense_replace=1,
        topk_method="greedy", routed_scaling_factor=1.0, norm_topk_prob=False, vocab_size=331, bos_token_id=None,
        eos_token_id=2, rope_parameters=yarn(10000.0, 8.0, mscale=0.707, mscale_all_dim=0.707), prompts=(1, 17, 40)),
    "deepseek_v2_groups_bf16": dict(
        arch="deepseek_v2", seed=122, hidden_size=64, num_attention_heads=4, num_hidden_layers=2, q_lora_rank=44,
        kv_lora_rank=36, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=20, n_routed_experts=9,
        num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=0,
        topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=4.0, norm_topk_prob=False,
        vocab_size=300, bos_token_id=None, eos_token_id=2, dtype="bfloat16", new=True, prompts=(5, 24)),
    "deepseek_v3": dict(  # the bias makes every key negative: a mask of zeros would choose others
        arch="deepseek_v3", seed=123, hidden_size=80, num_attention_heads=5, num_key_value_heads=5,
        num_hidden_layers=2, q_lora_rank=36, kv_lora_rank=44, qk_nope_head_dim=24, qk_rope_head_dim=10, v_head_dim=12,
        n_routed_experts=12, num_experts_per_tok=4, moe_intermediate_size=20, n_shared_experts=1,
        first_k_dense_replace=1, n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
        choice_bias=-2.0, num_mtp_layers=0, vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0), prompts=(1, 17, 40)),
    "deepseek_v3_fp8": dict(  # blocks of 128 x 128 that are not whole at either end
        arch="deepseek_v3", seed=124, hidden_size=144, num_attention_heads=3, num_key_value_heads=3,
        num_hidden_layers=2, q_lora_rank=132, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16,
        v_head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=36, n_shared_experts=2,
        first_k_dense_replace=1, n_group=2, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
        num_mtp_layers=0, vocab_size=300, bos_token_id=None, eos_token_id=2, fp8=True, dtype="bfloat16",
        rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0), prompts=(5, 40)),
    "llama4_text": dict(  # prompts longer than a chunk; the routing of two experts scales a row twice
        arch="llama4_text", seed=141, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=4, num_local_experts=7, num_experts_per_tok=2, intermediate_size=24,
        intermediate_size_mlp=40, interleave_moe_layer_step=2, no_rope_layer_interval=3, attention_chunk_size=7,
        floor_scale=6, attn_scale=0.3, use_qk_norm=True, vocab_size=331, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, prompts=(1, 17, 40)),
    "llama4_pictures_bf16": dict(  # as published: a text model inside, a rotary scaling without a transition
        arch="llama4", seed=142, hidden_size=64, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=3, num_local_experts=5, num_experts_per_tok=1, intermediate_size=28,
        intermediate_size_mlp=36, moe_layers=[0, 2], no_rope_layers=[1, 0, 1], attention_chunk_size=16,
        floor_scale=8, attn_scale=0.1, use_qk_norm=False, attention_bias=True, vocab_size=300, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 16.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 1.0, "original_max_position_embeddings": 64},
        dtype="bfloat16", new=True, prompts=(5, 40)),
    "kimi_k2": dict(
        arch="deepseek_v3", seed=125, model_type="kimi_k2", hidden_size=64, num_attention_heads=4,
        num_key_value_heads=4, num_hidden_layers=2, q_lora_rank=40, kv_lora_rank=32, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=13, num_experts_per_tok=5, moe_intermediate_size=16,
        n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=2.827,
        norm_topk_prob=True, num_mtp_layers=0, vocab_size=320, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=2,
        rope_parameters=yarn(50000.0, 8.0, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0), shard="120KB",
        prompts=(5, 24)),
    "glm4_moe": dict(  # half of a head turns unsaid
        arch="glm4", seed=126, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, n_routed_experts=10, num_experts_per_tok=3, moe_intermediate_size=20,
        n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, routed_scaling_factor=2.5,
        norm_topk_prob=True, attention_bias=True, use_qk_norm=True, num_mtp_layers=0, vocab_size=320,
        rope_theta=1000000.0, eos_token_id=2, prompts=(1, 17, 40)),
    "glm4_moe_air_bf16": dict(
        arch="glm4", seed=127, hidden_size=56, num_attention_heads=4, num_key_value_heads=1, head_dim=24,
        num_hidden_layers=2, n_routed_experts=7, num_experts_per_tok=2, moe_intermediate_size=28,
        n_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=1.0, norm_topk_prob=True,
        attention_bias=True, use_qk_norm=False, num_mtp_layers=0, vocab_size=300, partial_rotary_factor=0.25,
        rope_theta=10000.0, eos_token_id=2, dtype="bfloat16", new=True, prompts=(5, 40)),
    "gpt_oss": dict(  # a low limit, which many gates and ups meet
        arch="gpt_oss", seed=141, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, num_local_experts=7, num_experts_per_tok=3, intermediate_size=24, sliding_window=9,
        swiglu_limit=1.25, vocab_size=320, eos_token_id=2, rope_parameters=yarn(150000.0, 8.0, truncate=False),
        prompts=(1, 17, 40)),
    "gpt_oss_mxfp4": dict(
        arch="gpt_oss", seed=142, hidden_size=96, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        num_hidden_layers=3, num_local_experts=5, num_experts_per_tok=2, intermediate_size=32, sliding_window=16,
        vocab_size=300, eos_token_id=2, dtype="bfloat16", mxfp4=True, shard="90KB",
        rope_parameters=yarn(150000.0, 8.0, truncate=False), prompts=(5, 40)),
}


# ---- texts ----------------------------------------------------------------------------------------

# What the tokenizers are trained on: several scripts, so that merges cross UTF-8 bytes everywhere.
CORPUS = [
    "Once upon a time there was a small ferry on a wide river. It carried people, sheep and letters. "
    "The ferryman didn't ask who they were; he'd nod, they'd sit, and the river did the rest. We've seen it, "
    "I'll say so, you're right, that's all I'm told. Every token goes to its experts and comes home again.",
    "Die Fähre überquert den Fluß jeden Tag um 6:30 Uhr. Größe, Höhe, Länge und Gewicht wurden geprüft. "
    "Äpfel, Öl und Übermut: das sind drei Wörter mit Umlauten. Straßenbahnhaltestelle, Donaudampfschiff.",
    "渡船每天早上六点半出发。河水很宽,但是船夫不着急。专家并行推理:每个词元去找它的专家,然后回家。"
    "我们今天学习中文,明天学习数学。北京、上海、广州和深圳都是大城市。",
    "تعبر العبّارة النهر كل صباح. كان الماء هادئًا والناس ينتظرون. مرحبا بالعالم، كيف حالك اليوم؟ "
    "السلام عليكم ورحمة الله وبركاته.",
    "नाव हर सुबह नदी पार करती है। लोग घाट पर इंतज़ार करते हैं। नमस्ते दुनिया, आप कैसे हैं? "
    "हिन्दी में संयुक्ताक्षर होते हैं: क्षत्रिय, ज्ञान, श्रीमती।",
    "Паром пересекает реку каждый день. Πλοίο διασχίζει το ποτάμι. חלב ודבש. 日本語のテキストとカタカナ。한국어 문장입니다.",
    "👩‍👩‍👧‍👦 👨‍🚀 🏳️‍🌈 👍🏽 😀😀😀 🇩🇪🇫🇷 ❤️ ✈️ e\u0301 a\u0308 n\u0303 o\u0302 \u1ec7 cafe\u0301 Zu\u0308rich café Zürich",
    "0 1 2 3 10 11 12 100 1000 2024 3.14159 1,234,567 1e-5 0x7fff ½ ² Ⅷ ٣ ५ 12:34:56 50% $9.99 €20",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i] * w[i];\n}\n\n\treturn sum;\r\n#include <vector>\r\n"
    "def f(x):\n    if x is None:\n        return {}\n    return {'a': [1, 2, 3], \"b\": x->y != NULL}\n\n\n",
    "    four spaces\n        eight spaces\n\n\n\n   \n \t \t tabs\t\tand   runs    of     space      \n",
]

# Texts on which tokenizers differ. Escapes where an editor would normalise or hide the character.
TRICKY = [
    "", " ", "  ", "     ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\t\t x", "a\r\nb\r\n", "a \n\n b  ",
    "Hello, world!", "hello", " hello", "hello ", "  hello   world  ", "don't", "DON'T", "I'LL you'Re we'Ve he'd",
    "'s", " 's", "x's 'tis", "don\u2019t", "Once upon a time", "1234567", " 1234567", "3.14159e-10", "1,234,567.89",
    "abc123def", "x=1;y=22", "\u0663\u0664\u0665 \u096b\u096c \u00bd\u00b2 \u2167", "Fl\u00fcsse \u00fcber Stra\u00dfen",
    "caf\u00e9", "cafe\u0301", "Zu\u0308rich Z\u00fcrich", "\u1ec7 e\u0323\u0302 e\u0302\u0323", "\u0301", "a \u0301b", "\u0308\u0308\u0308",
    "\u212b \u2126 \u00c5 \ufb01 \uac00 \u1100\u1161", "渡船每天早上六点半出发。", "我love编程123次", "日本語のテキスト", "한국어 문장",
    "تعبر العبّارة النهر", "नमस्ते दुनिया", "क्षत्रिय", "Привет, мир! Γειά σου",
    "👩‍👩‍👧‍👦", "a👍🏽b", "😀 😀😀", "🇩🇪🇫🇷", "❤️ ✈️", "\U0001f9ff\U0001fae0\U00010348\U0001d518",
    "<|endoftext|>", "a<|im_start|>b", " <|im_start|> user\nhi<|im_end|>\n", "<|im_start|><|im_end|>",
    "<|im_start|", "<|IM_START|>", "x<tool_call>y <tool_call> z", "e<|im_end|>\u0301", "\u00e9<tool_call>e\u0301",
    "\u0000", "a\u0000b", "\u0001\u0002\u001f\u007f", "\u00a0nbsp\u00a0", "\u2003em\u3000wide\u2028line\u2029para\u0085nel",
    "\ufeffbom", "\u200bzero\u200dwidth", "\ufffd", "\u00ad\u2011soft", "\v\f",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i];\n}\n", "def f(x):\n\treturn {'a': [1, 2]}\n", "!!!???...\n\n--- === ***",
    "https://example.org/a_b?c=d&e=%20#f", "a" * 300, "Donaudampfschifffahrtsgesellschaftskapit\u00e4n" * 4, "=" * 130, " " * 97 + "x",
    "ab " * 60, "\u00e4\u00f6\u00fc" * 40, "line one\nline two\r\n\tline three   \n\n   end",
]


# ---- tokenizers -----------------------------------------------------------------------------------

def byte_level_bpe(split: str | None, nfc: bool, vocab: int, text=CORPUS, special=SPECIAL) -> Tokenizer:
    """Byte-level BPE. With `split`, the regex comes first as in Qwen; without, ByteLevel's own (GPT-2)."""
    tok = Tokenizer(models.BPE())
    if nfc:
        tok.normalizer = normalizers.NFC()
    level = dict(add_prefix_space=False, trim_offsets=False, use_regex=split is None)
    if split is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(**level)
    else:
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(**level)])
    tok.post_processor = processors.ByteLevel(**level)
    tok.decoder = decoders.ByteLevel(**level)
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    # Added after training, so that they lie behind the ordinary vocabulary as in Qwen checkpoints.
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tok


def save_tokenizer(tok: Tokenizer, path: Path, string_merges: bool, eos: str = SPECIAL[0],
                   kind: str = "Qwen2Tokenizer") -> None:
    """tokenizer.json and tokenizer_config.json. Older files hold merges as "a b", newer as ["a", "b"]."""
    path.mkdir(parents=True, exist_ok=True)
    data = json.loads(tok.to_str())
    if string_merges:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        del data["model"]["ignore_merges"]
    write_json(path / "tokenizer.json", data)
    added = {str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
             for t in data["added_tokens"]}
    write_json(path / "tokenizer_config.json", {
        "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": eos, "errors": "replace",
        "model_max_length": 512, "pad_token": eos, "split_special_tokens": False,
        "tokenizer_class": kind, "unk_token": None})


def split_steps(*patterns: str, digits: bool = False):
    """Several cuts one after the other, then ByteLevel without its own, as DeepSeek and GLM have it."""
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece_bpe(metaspace: dict | None, vocab: int) -> Tokenizer:
    """BPE of characters with byte fallback, as Mixtral has it: spaces become U+2581, by normalizers in
    older files and by the Metaspace pre-tokenizer in newer ones."""
    first = ["<unk>", "<s>", "</s>"]
    named_bytes = [f"<0x{b:02X}>" for b in range(256)]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=first + named_bytes, limit_alphabet=90, show_progress=False))
    model = json.loads(tok.to_str())["model"]
    tok = Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]], unk_token="<unk>",
                               byte_fallback=True, fuse_unk=True))
    if metaspace is None:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in first + SPECIAL])
    return tok


def tokenizer_kinds() -> dict:
    """name -> (tokenizer, merges as strings). All but the first two are small: what differs is how they cut."""
    kinds = {"qwen": (byte_level_bpe(QWEN_SPLIT, True, 1200), True),
             "gpt2": (byte_level_bpe(None, False, 1200), False),
             "mixtral": (sentencepiece_bpe(None, 700), True),
             "metaspace": (sentencepiece_bpe(dict(prepend_scheme="first", split=True), 700), False)}
    for name, steps in SPLITS.items():
        tok = byte_level_bpe(QWEN_SPLIT, False, 700)
        tok.pre_tokenizer = steps()
        kinds[name] = (tok, False)
    return kinds


def golden_tokenizers(out: Path) -> None:
    for name, (tok, string_merges) in tokenizer_kinds().items():
        tok.add_tokens([AddedToken(NOT_SPECIAL, special=False, normalized=False)])
        path = out / f"tokenizer_{name}"
        save_tokenizer(tok, path, string_merges, kind="Qwen2Tokenizer" if name == "qwen" else "GPT2Tokenizer")
        tok = Tokenizer.from_file(str(path / "tokenizer.json"))
        characters = not any(t.startswith("\u0120") for t in tok.get_vocab())
        rows, cuts = [], []
        for text in TRICKY:
            ids = tok.encode(text, add_special_tokens=False).ids
            rows.append({"text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False)})
            # A stream shows text while ids still arrive: every prefix, also those inside a character.
            if 2 <= len(ids) <= 12 and any(ord(c) > 0x7F for c in text):
                cuts += [{"ids": ids[a:b], "decoded": tok.decode(ids[a:b], skip_special_tokens=False)}
                         for a, b in [(0, 1), (1, len(ids)), (0, len(ids) - 1)]]
        # ByteFallback counts the bytes of what is no character, ByteLevel its parts, as we do everywhere.
        cuts = [c for c in cuts if not characters or "\ufffd" not in c["decoded"]]
        write_json(path / "golden.json", rows, compact=True)
        write_json(path / "decode.json", cuts, compact=True)
        print(f"tokenizer_{name}: vocab {tok.get_vocab_size()}, {len(rows)} texts, {len(cuts)} slices")
    golden_tiktoken(out / "tokenizer_kimi")


def golden_tiktoken(path: Path) -> None:
    """A tiktoken file, as Kimi-K2 has it, and what the tiktoken package makes of it."""
    trained = byte_level_bpe(None, False, 700)
    letters = {letter: byte for byte, letter in bytes_to_letters().items()}
    special = set(SPECIAL)
    tokens = sorted((i, t) for t, i in trained.get_vocab().items() if t not in special)
    ranks = {bytes(letters[c] for c in t): i for i, (_, t) in enumerate(tokens)}
    path.mkdir(parents=True, exist_ok=True)
    (path / "tiktoken.model").write_bytes(
        b"".join(base64.b64encode(t) + b" " + str(i).encode() + b"\n" for t, i in ranks.items()))
    named = {len(ranks) + i: s for i, s in enumerate(SPECIAL)}
    write_json(path / "tokenizer_config.json", {
        "added_tokens_decoder": {str(i): {"content": s, "special": True} for i, s in named.items()},
        "eos_token": SPECIAL[0], "tokenizer_class": "TikTokenTokenizer"})
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI_SPLIT, mergeable_ranks=ranks,
                                 special_tokens={s: i for i, s in named.items()})
    rows, cuts = [], []
    for text in TRICKY:
        ids = encoding.encode(text, allowed_special="all")
        rows.append({"text": text, "ids": ids, "decoded": encoding.decode(ids)})
        if 2 <= len(ids) <= 12 and any(ord(c) > 0x7F for c in text):
            cuts += [{"ids": ids[a:b], "decoded": encoding.decode(ids[a:b])} for a, b in [(0, 1), (1, len(ids))]]
    write_json(path / "golden.json", rows, compact=True)
    write_json(path / "decode.json", cuts, compact=True)
    print(f"{path.name}: vocab {encoding.n_vocab}, {len(rows)} texts, {len(cuts)} slices")


def bytes_to_letters() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable Latin-1 as itself, the rest from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in itself]
    return {**{b: chr(b) for b in itself}, **{b: chr(0x100 + i) for i, b in enumerate(rest)}}


# ---- checkpoints ----------------------------------------------------------------------------------

def write_json(path: Path, data, compact: bool = False) -> None:
    if compact:  # one row a line: diffs stay readable, files small
        body = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=True) for row in data) + "\n]"
    else:
        body = json.dumps(data, indent=2, ensure_ascii=False)
    path.write_text(body + "\n", encoding="utf-8")


def to_hub_config(config: dict) -> dict:
    """config.json as published checkpoints have it; transformers 5 renamed several of its fields."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    assert rope["rope_type"] in ("default", "yarn", "llama3")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "llama3":
        config["rope_scaling"] = rope
    if rope["rope_type"] == "yarn":
        name = "rope_type" if config["model_type"] == "gpt_oss" else "type"
        config["rope_scaling"] = {name: rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"].startswith("deepseek"):
        for key in ("head_dim", "qk_head_dim", "rope_interleave"):
            config.pop(key, None)
        config["moe_layer_freq"] = 1
        config["scoring_func"] = "softmax" if config["model_type"] == "deepseek_v2" else "sigmoid"
        if config["model_type"] == "deepseek_v3":
            config["topk_method"] = "noaux_tc"
    elif config["model_type"] not in ("mixtral", "glm4_moe", "gpt_oss", "llama4_text"):
        config["num_experts"] = config.pop("num_local_experts", config.get("num_experts"))
    if config["model_type"].startswith("qwen"):
        config["sliding_window"] = 32 if config["model_type"] == "qwen2_moe" else None  # off: use_sliding_window
    for key in ("layer_types", "moe_layers", "pad_token_id", "qkv_bias"):
        if key != "layer_types" or config["model_type"] != "gpt_oss":
            config.pop(key, None)
    if config["model_type"] == "qwen3_moe":
        config["rope_scaling"] = None
    return dict(sorted(config.items()))


def save_checkpoint(model, path: Path, shard: str = "1GB", hub_config: bool = True) -> None:
    """save_pretrained, with what published checkpoints look like made certain."""
    model.save_pretrained(path, max_shard_size=shard)
    names = set()
    for file in path.glob("model*.safetensors"):
        names |= set(load_file(file))
        file.chmod(0o644)  # safetensors writes them for the owner alone
    fused = [n for n in names if "gate_up_proj" in n or n.endswith("experts.down_proj")]
    if model.config.model_type.startswith(("llama4", "gpt_oss")):
        fused = []  # as published
    if fused:  # this transformers splits them itself; do not let another version pass unnoticed
        raise SystemExit(f"{path}: transformers {transformers.__version__} saved fused experts: {fused[0]}")
    if hub_config:
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config.json", to_hub_config(config))


FP8_BLOCK = 128


def pack_fp8(weight: torch.Tensor):
    """Codes, a scale for each block, and the numbers that the two stand for."""
    n, k = weight.shape
    blocks = [-(-n // FP8_BLOCK), -(-k // FP8_BLOCK)]
    padded = torch.zeros(blocks[0] * FP8_BLOCK, blocks[1] * FP8_BLOCK)
    padded[:n, :k] = weight.float()
    padded = padded.view(blocks[0], FP8_BLOCK, blocks[1], FP8_BLOCK)
    scale = padded.abs().amax(dim=(1, 3)) / 448.0
    codes = (padded / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = codes.float() * scale[:, None, :, None]
    shape = (blocks[0] * FP8_BLOCK, blocks[1] * FP8_BLOCK)
    return (codes.view(shape)[:n, :k].contiguous(), scale, meant.reshape(shape)[:n, :k].contiguous())


def store_as_fp8(path: Path, plain: Path) -> None:
    """Packs the checkpoint at `path` as DeepSeek publishes its own; `plain`: a copy with what the packed
    numbers stand for, in f32."""
    file = path / "model.safetensors"
    packed, meant = {}, {}
    for name, tensor in load_file(file).items():
        if tensor.dim() == 2 and "_proj" in name:
            packed[name], packed[name + "_scale_inv"], meant[name] = pack_fp8(tensor)
        else:
            packed[name], meant[name] = tensor, tensor.float()
    shutil.copytree(path, plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, file, metadata={"format": "pt"})
    file.chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                     "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
    write_json(path / "config.json", dict(sorted(config.items())))


MXFP4_GROUP = 32
MXFP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def pack_mxfp4(weight: torch.Tensor):
    """[E, in, out] as blocks [E, out, in / 32, 16] and scales [E, out, in / 32], and the numbers that they
    stand for."""
    groups = weight.float().transpose(1, 2).contiguous().unflatten(-1, (-1, MXFP4_GROUP))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 2  # the greatest is below 8
    scaled = torch.ldexp(groups, -exponent)
    code = (scaled.abs()[..., None] - MXFP4_VALUES).abs().argmin(-1)
    meant = torch.ldexp(MXFP4_VALUES[code] * scaled.sign(), exponent)
    code = (code + 8 * (scaled < 0)).to(torch.uint8)
    blocks = code[..., ::2] | code[..., 1::2] << 4
    scales = (exponent[..., 0] + 127).to(torch.uint8)
    return blocks.contiguous(), scales, meant.flatten(-2).transpose(1, 2).contiguous()


def store_as_mxfp4(path: Path, plain: Path) -> None:
    """Packs the checkpoint at `path` as gpt-oss is published; `plain`: a copy with what the packed numbers stand
    for, in f32."""
    shutil.copytree(path, plain)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {}
    for file in path.glob("model*.safetensors"):
        packed, meant = {}, {}
        for name, tensor in load_file(file).items():
            if tensor.dim() == 3:
                packed[name + "_blocks"], packed[name + "_scales"], meant[name] = pack_mxfp4(tensor)
            else:
                packed[name], meant[name] = tensor, tensor.float()
        index["weight_map"].update({name: file.name for name in packed})
        save_file(meant, plain / file.name, metadata={"format": "pt"})
        save_file(packed, file, metadata={"format": "pt"})
        file.chmod(0o644)
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    write_json(path / "model.safetensors.index.json", index)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                "model.embed_tokens", "lm_head"],
                                     "quant_method": "mxfp4"}
    config.pop("torch_dtype")
    write_json(path / "config.json", dict(sorted(config.items())))


ROUTERS = ("mlp.gate.weight", "mlp.router.weight", "feed_forward.router.weight")


def randomise(model, gen: torch.Generator, choice_bias: float = 0.0) -> None:
    """Fresh values everywhere: transformers starts biases at 0 and norms at 1, which hides mistakes."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.4 * noise
        elif "embed_tokens" in name:
            value = 0.5 * noise
        elif name.endswith(ROUTERS):
            value = noise * 2.0 / p.shape[-1] ** 0.5  # routing varies, yet is not one-hot
        else:
            inputs = p.shape[-2] if p.dim() == 3 else p.shape[-1]  # experts in one tensor: [E, in, out]
            value = noise * 1.2 / inputs ** 0.5
        p.data.copy_(value)
    for name, b in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            b.copy_(choice_bias + 0.1 * torch.randn(b.shape, generator=gen))


OWN_KEYS = {"arch", "seed", "prompts", "shard", "dtype", "new", "fp8", "mxfp4", "model_type", "choice_bias"}


def build_with_pictures(case: dict, seed: int):
    """A text model inside one that sees pictures, whose other parts are as small as can be."""
    text = {k: v for k, v in case.items() if k not in OWN_KEYS}
    vision = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vision_output_dim=8,
                  projector_input_dim=8, projector_output_dim=8, image_size=8, patch_size=4, num_channels=3)
    config = transformers.Llama4Config(text_config=dict(max_position_embeddings=512, **text), vision_config=vision)
    model = transformers.Llama4ForConditionalGeneration(config)
    randomise(model, torch.Generator().manual_seed(seed))
    return model.to(getattr(torch, case["dtype"]))


def build(case: dict, seed: int):
    family = {"qwen2": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
              "qwen3": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
              "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
              "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM),
              "llama4_text": (transformers.Llama4TextConfig, transformers.Llama4ForCausalLM),
              "deepseek_v2": (transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
              "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
              "glm4": (transformers.Glm4MoeConfig, transformers.Glm4MoeForCausalLM),
              "gpt_oss": (transformers.GptOssConfig, transformers.GptOssForCausalLM)}
    if case["arch"] == "llama4":
        return build_with_pictures(case, seed)
    config_class, model_class = family[case["arch"]]
    fields = {k: v for k, v in case.items() if k not in OWN_KEYS}
    fields.setdefault("intermediate_size", case["hidden_size"] + 12)
    model = model_class(config_class(max_position_embeddings=512, **fields))
    randomise(model, torch.Generator().manual_seed(seed), case.get("choice_bias", 0.0))
    return model.to(getattr(torch, case.get("dtype", "float32")))


# ---- answers --------------------------------------------------------------------------------------

def choice_gap(gate, logits: torch.Tensor, k: int) -> torch.Tensor:
    """By how much what the router's choice is made of would have to move for another choice."""
    keys = logits
    if getattr(gate, "e_score_correction_bias", None) is not None:
        keys = logits.sigmoid() + gate.e_score_correction_bias
    gap = torch.full(keys.shape[:-1], float("inf"))
    groups, chosen = getattr(gate, "num_group", None) or 1, getattr(gate, "topk_group", None) or 1
    if groups > chosen:
        split = keys.unflatten(-1, (groups, -1))
        two = hasattr(gate, "e_score_correction_bias")
        scores = split.topk(2, dim=-1).values.sum(-1) if two else split.amax(-1)
        best = scores.topk(chosen + 1, dim=-1)
        gap = best.values[..., chosen - 1] - best.values[..., chosen]
        mask = torch.zeros_like(scores).scatter_(-1, best.indices[..., :chosen], 1.0)
        keys = split.masked_fill(mask[..., None] == 0, float("-inf")).flatten(-2)
    best = keys.topk(k + 1, dim=-1).values
    return torch.minimum(gap, best[..., k - 1] - best[..., k])


def router_gap(model, ids: torch.Tensor) -> torch.Tensor:
    """Per prompt: the smallest distance from a choice to another one."""
    k, gaps, hooks = model.config.num_experts_per_tok, [], []

    def hook(gate, _inputs, output):
        logits = output[1] if type(gate).__name__ == "Llama4Router" else output[0]
        gaps.append(choice_gap(gate, logits.float().reshape(*ids.shape, -1), k).amin(dim=-1))

    for name, module in model.named_modules():
        if name.endswith(tuple(r.removesuffix(".weight") for r in ROUTERS)):
            hooks.append(module.register_forward_hook(hook))
    model(ids)
    for h in hooks:
        h.remove()
    return torch.stack(gaps).amin(dim=0)


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.double(), y.double()
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


def greedy(model, ids: torch.Tensor):
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY, do_sample=False,
                         eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, ids.shape[1]:], torch.cat(out.logits).float()


def pick_prompt(model, half, length: int, gen: torch.Generator, banned: set[int]) -> dict:
    """The prompt whose answer least depends on rounding: clear routing, no near ties, varied tokens."""
    ids = torch.randint(0, model.config.vocab_size, (400, length), generator=gen)
    gap = router_gap(model, ids)
    best = None
    for i in gap.argsort(descending=True)[:24].tolist():
        tokens, rows = greedy(model, ids[i:i + 1])
        full = torch.cat([ids[i], tokens])[None]
        logits = model(full).logits[0].float()
        span = float(logits.max() - logits.min())
        top = rows.topk(2, dim=-1).values
        margin = float((top[:, 0] - top[:, 1]).min()) / span
        rest_gap = float(router_gap(model, full))
        cached = float((logits[length - 1:-1] - rows).abs().max()) / span
        assert cached < 1e-5, cached  # with and without KV cache: the same answer
        diff = calc_diff(logits[:length], half(ids[i:i + 1]).logits[0].float())
        if margin < 1e-3 or rest_gap < 1e-3 or diff > 5e-4 or banned & set(tokens.tolist()):
            continue
        found = dict(input_ids=ids[i].tolist(), greedy=tokens.tolist(), margin=margin, router_gap=float(gap[i]),
                     bf16_calc_diff=diff, logits=logits[:length], rows=rows, distinct=len(set(tokens.tolist())))
        if best is None or found["distinct"] > best["distinct"]:
            best = found
        if best["distinct"] >= 16:
            break
    if best is None:
        raise SystemExit(f"no prompt of length {length} is robust enough")
    return best


def golden_model(name: str, case: dict, out: Path, seed: int) -> None:
    path = out / name
    shutil.rmtree(path, ignore_errors=True)
    tok = byte_level_bpe(QWEN_SPLIT, True, 290)
    save_checkpoint(build(case, seed), path, case.get("shard", "1GB"), not case.get("new", False))
    save_tokenizer(tok, path, string_merges=not case.get("new", False))

    answers = path  # what transformers is to answer for
    temporary = tempfile.TemporaryDirectory()
    for kind, store in (("fp8", store_as_fp8), ("mxfp4", store_as_mxfp4)):
        if case.get(kind):
            answers = Path(temporary.name) / name
            store(path, answers)
    load = dict(attn_implementation="eager", experts_implementation="eager")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        answers, dtype=torch.float32, output_loading_info=True, **load)
    unexpected = {k for k in info["unexpected_keys"] if not k.startswith(("vision_model.", "multi_modal_projector."))}
    assert not info["missing_keys"] and not unexpected, info
    model.eval()
    half = transformers.AutoModelForCausalLM.from_pretrained(answers, dtype=torch.bfloat16, **load).eval()
    gen = torch.Generator().manual_seed(seed + 1000)
    banned = {tok.token_to_id(s) for s in SPECIAL}

    prompts, tensors = [], {}
    for n, length in enumerate(case["prompts"]):
        p = pick_prompt(model, half, length, gen, banned)
        tensors[f"logits.{n}"] = p["logits"].contiguous()
        tensors[f"greedy_logits.{n}"] = p["rows"].contiguous()
        prompts.append({
            "input_ids": p["input_ids"], "greedy": p["greedy"], "logits": f"logits.{n}",
            "greedy_logits": f"greedy_logits.{n}", "greedy_margin_of_range": round(p["margin"], 6),
            "router_gap": round(p["router_gap"], 6), "bf16_calc_diff": p["bf16_calc_diff"]})
        print(f"{name}: len {length:2} margin {p['margin']:.4f} router gap {p['router_gap']:.4f} "
              f"bf16 calc_diff {p['bf16_calc_diff']:.1e} distinct {p['distinct']}")
    save_file(tensors, path / "golden.safetensors")
    (path / "golden.safetensors").chmod(0o644)
    write_json(path / "golden.json", {
        "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
        "compute": "float32", "stored": case.get("dtype", "float32"), "prompts": prompts})
    if "model_type" in case:  # unknown to transformers, which has the same graph under another name
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config.json", {**config, "model_type": case["model_type"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "data")
    parser.add_argument("--only", nargs="*", default=None, help="these cases, or `tokenizers`")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one summation order
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.only is None or "tokenizers" in args.only:
        golden_tokenizers(args.out)
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        if args.only is None or name in args.only:
            golden_model(name, case, args.out, case.get("seed", seed))
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
