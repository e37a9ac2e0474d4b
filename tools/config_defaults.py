#!/usr/bin/env python3
"""What each family's published config class means by a field that config.json leaves out, as transformers has it.

    python tools/config_defaults.py write     makes ferry/model/config_defaults.cpp anew
    python tools/config_defaults.py check     ends with 1 and says where, if transformers says otherwise

The families read a file's fields over these, so that no default is copied by hand. Fields that a class makes of others
(layer_types, qk_head_dim) are left to the families.
"""

import argparse
import dataclasses
import difflib
import json
import sys
import textwrap
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

FILE = Path(__file__).resolve().parent.parent / "ferry/model/config_defaults.cpp"
CLASSES = ["deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa",
           "gpt_oss", "hunyuan_v1_moe", "lfm2_moe", "llama4_text", "minimax_m2", "mistral4", "mixtral", "olmoe", "qwen2_moe", "qwen3_5_moe_text",
           "qwen3_moe", "qwen3_next"]
# Without meaning for what a model computes, or for whoever embeds it.
LEFT_OUT = {"attention_dropout", "chunk_size_feed_forward", "initializer_range", "output_router_logits", "pretraining_tp",
            "router_aux_loss_coef", "router_jitter_noise", "use_cache", "bos_token_id", "pad_token_id", "sep_token_id",
            "eod_token_id", "rope_parameters"}

HEAD = """// Written by tools/config_defaults.py (transformers {version}): do not edit.
#include "ferry/model/config_defaults.h"

#include <array>
#include <utility>

namespace ferry {{

namespace {{

// clang-format off
constexpr std::array<std::pair<std::string_view, std::string_view>, {count}> kDefaults = {{{{
"""

TAIL = """}};
// clang-format on

}  // namespace

std::string_view config_defaults(std::string_view model_type) {
  for (const auto& [type, fields] : kDefaults)
    if (type == model_type) return fields;
  return "{}";
}

}  // namespace ferry
"""


def defaults_of(model_type: str) -> dict:
    cls = CONFIG_MAPPING[model_type]
    base = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    own = {f.name: f.default for f in dataclasses.fields(cls)
           if f.name not in LEFT_OUT and (f.name not in base or f.name in ("tie_word_embeddings", "eos_token_id"))}
    fields = {k: v for k, v in own.items() if isinstance(v, (bool, int, float, str, list)) and v != []}
    rope = cls().to_dict()["rope_parameters"]
    fields["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        # How much turns is another field's affair where the class makes it of the sizes of heads.
        made = {"type"} | ({"partial_rotary_factor"} if "qk_rope_head_dim" in own else set())
        fields["rope_parameters"] = {k: v for k, v in rope.items() if k not in made}
    elif "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return fields


def source() -> str:
    lines = [HEAD.format(version=transformers.__version__, count=len(CLASSES))]
    for name in CLASSES:
        fields = json.dumps(dict(sorted(defaults_of(name).items())))
        text = textwrap.fill(fields, 92, subsequent_indent="       ", break_long_words=False, break_on_hyphens=False)
        lines.append(f'    {{"{name}",\n     R"({text})"}},\n')
    return "".join(lines) + TAIL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["write", "check"])
    args = parser.parse_args()
    new = source()
    if args.what == "write":
        FILE.write_text(new)
        return
    # Another version in the head comment is no difference.
    old = FILE.read_text().splitlines()[1:]
    lines = list(difflib.unified_diff(old, new.splitlines()[1:], "config_defaults.cpp", "transformers", lineterm="", n=0))
    print("\n".join(lines))
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
