// The program's subcommands: one file each, one line each in main.cpp.
#pragma once

namespace ferry {

class Command;

/// Each adds its subcommand to `app`. When the command line names it, it runs while parsing and
/// stores its exit status. Errors leave as exceptions; main() turns them into one line.
void add_generate(Command& app, int& status);
void add_serve(Command& app, int& status);
void add_chat(Command& app, int& status);
void add_eval(Command& app, int& status);
void add_inspect(Command& app, int& status);
void add_make_model(Command& app, int& status);
void add_pack(Command& app, int& status);
void add_quantize(Command& app, int& status);
void add_doctor(Command& app, int& status);
void add_bench(Command& app, int& status);
void add_eplb(Command& app, int& status);
void add_simulate(Command& app, int& status);

/// The same for what stands under `bench`.
void add_bench_a2a(Command& bench, int& status);
void add_bench_moe(Command& bench, int& status);
void add_bench_model(Command& bench, int& status);
void add_bench_link(Command& bench, int& status);

}  // namespace ferry
