// The program's subcommands: one file each, one line each in main.cpp.
#pragma once

namespace CLI {
class App;
}

namespace ferry {

/// Each adds its subcommand to `app`. When the command line names it, it runs while parsing and
/// stores its exit status. Errors leave as exceptions; main() turns them into one line.
void add_generate(CLI::App& app, int& status);
void add_serve(CLI::App& app, int& status);
void add_eval(CLI::App& app, int& status);
void add_inspect(CLI::App& app, int& status);
void add_make_model(CLI::App& app, int& status);
void add_quantize(CLI::App& app, int& status);
void add_doctor(CLI::App& app, int& status);
void add_bench(CLI::App& app, int& status);
void add_eplb(CLI::App& app, int& status);

/// The same for what stands under `bench`.
void add_bench_a2a(CLI::App& bench, int& status);
void add_bench_moe(CLI::App& bench, int& status);
void add_bench_model(CLI::App& bench, int& status);
void add_bench_link(CLI::App& bench, int& status);

}  // namespace ferry
