#!/usr/bin/env python3
"""Changes planted into a copy of the public C headers: tools/c_abi.py must find each that breaks programs that were
built before, and pass each that only adds. Usage: planted.py SOURCE_DIR"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BREAKS = {
    "a function is gone": ("comm.h", "FERRY_API ferry_status ferry_comm_progress(ferry_comm* comm);", ""),
    "a parameter is wider": ("comm.h", "ferry_comm_mask(ferry_comm* comm, int32_t rank)", "ferry_comm_mask(ferry_comm* comm, int64_t rank)"),
    "another result": ("base.h", "FERRY_API int32_t ferry_last_error_rank", "FERRY_API int64_t ferry_last_error_rank"),
    "a member in the middle": ("comm.h", "  int32_t threads;         ///< that", "  int32_t fibres;\n  int32_t threads;         ///< that"),
    "a member is gone": ("comm.h", "  int32_t rails;         ///< fabric: interfaces of a rank; 0: as the provider has it\n", ""),
    "a member is narrower": ("all_to_all.h", "  double timeout_s;          ///< of each phase that waits", "  float timeout_s;"),
    "two members change places": ("all_to_all.h", "  int32_t topk;              ///< K; 0 for moe_forward, whose router says it\n  int32_t hidden;            ///< H\n",
                                  "  int32_t hidden;\n  int32_t topk;\n"),
    "a struct without a head grows": ("base.h", "  void* queue;     ///<", "  void* event;\n  void* queue;     ///<"),
    "a struct without a head grows at its end": ("comm.h", "  const char* value;\n} ferry_pair;", "  const char* value;\n  int64_t more;\n} ferry_pair;"),
    "a struct with a head grows, and a member of it is narrower": ("comm.h", "  double start_timeout_s;  ///< how long collective calls that make something wait",
                                                                   "  float start_timeout_s;\n  float more;"),
    "an enumerator has another value": ("base.h", "FERRY_NETWORK = 6", "FERRY_NETWORK = 66"),
    "an enumerator that only int32_t members hold has another value": ("all_to_all.h", "FERRY_RAGGED = 2", "FERRY_RAGGED = 4"),
    "an enumerator is gone": ("base.h", "  FERRY_WIRE_INT8 = 4,       ///< one f32 scale for the row\n", ""),
    "a magic number has another value": ("comm.h", "FERRY_COMM_OPTIONS_MAGIC 0xFE770001U", "FERRY_COMM_OPTIONS_MAGIC 0xFE779901U"),
    "a callback has another parameter": ("all_to_all.h", "typedef ferry_status (*ferry_experts_fn)(void* context, const ferry_expert_rows* rows);",
                                         "typedef ferry_status (*ferry_experts_fn)(const ferry_expert_rows* rows, void* context, int turn);"),
}
ADDITIONS = {
    "nothing at all": ("comm.h", "", ""),
    "a function": ("comm.h", "FERRY_API ferry_status ferry_comm_progress(", "FERRY_API ferry_status ferry_comm_new_thing(ferry_comm* comm);\nFERRY_API ferry_status ferry_comm_progress("),
    "a member at the end of a struct with a head": ("comm.h", "  size_t num_agreement;\n}", "  size_t num_agreement;\n  int64_t more;\n}"),
    "an enumerator": ("base.h", "  FERRY_DEFECT = 12", "  FERRY_NEW = 13,\n  FERRY_DEFECT = 12"),
    "a struct": ("comm.h", "typedef struct ferry_comm_info {", "typedef struct ferry_new {\n  uint32_t size;\n  uint32_t magic;\n} ferry_new;\n\ntypedef struct ferry_comm_info {"),
    "another word in a comment": ("comm.h", "makes no other call for long", "makes no other call for a long time"),
}


def status_of(source: Path, change: tuple[str, str, str]) -> tuple[int, str]:
    name, old, new = change
    with tempfile.TemporaryDirectory() as folder:
        headers = Path(folder) / "include"
        shutil.copytree(source / "include", headers)
        file = headers / "ferry/c" / name
        text = file.read_text()
        assert old in text, f"{name} has no longer what this test changes: {old}"
        file.write_text(text.replace(old, new, 1))
        ran = subprocess.run([sys.executable, source / "tools/c_abi.py", "check", "--headers", headers], capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr


def main() -> int:
    source = Path(sys.argv[1])
    wrong = []
    for expected, changes in ((1, BREAKS), (0, ADDITIONS)):
        for what, change in changes.items():
            status, said = status_of(source, change)
            if status == 77:
                print(said)
                return 77
            if status != expected:
                wrong.append(f"{what}: {'passed' if status == 0 else f'status {status}'}\n{said}")
    print("\n".join(wrong) or f"{len(BREAKS)} breaks found, {len(ADDITIONS)} additions passed")
    return len(wrong) > 0


sys.exit(main())
