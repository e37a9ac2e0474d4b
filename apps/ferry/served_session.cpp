#include "apps/ferry/served_session.h"

#include <spdlog/spdlog.h>

#include <ctime>
#include <filesystem>

#include "apps/ferry/command_line.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/model/kv_type.h"
#include "ferry/text/answer/answer_parser.h"

namespace ferry {

void add_parser_options(Command& command, ParserFlags& flags, const char* group) {
  command
      .add_option("--tool-call-parser",
                  flags.calls,
                  "How the model writes calls: hermes, qwen3_coder, deepseek_v3, kimi_k2, glm45, "
                  "llama4_pythonic, openai, mistral; auto: as its chat template says; none")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--reasoning-parser",
                  flags.thinking,
                  "How it thinks: deepseek_r1, qwen3, openai_gptoss, kimi, mistral; auto; none")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
}

ServedModel served_model(const Session& session,
                         const std::string& name,
                         const ParserFlags& flags) {
  const RunOptions& run = session.options;
  const std::filesystem::path path = std::filesystem::weakly_canonical(run.model);
  const std::string chat = chat_template_text(run.model);
  return {.name = name.empty() ? model_name(path) : name,
          .path = run.model.string(),
          .config = &session.config(),
          .tokenizer = session.model.tokenizer(),
          .render_chat =
              chat_renderer(run.model, [](const std::string& line) { spdlog::warn("{}", line); }),
          .calls = find_call_style(flags.calls, chat),
          .thinking = find_thinking_style(flags.thinking, chat),
          .sampling = recommended_sampling(run.model),
          .max_context = session.model.max_context(),
          .started = std::time(nullptr),
          .weights = session.model.held_as(),
          .activations = std::string(activations_name(session.model.activations())),
          .numerics = std::string(numerics_name(session.options.numerics)),
          .kv_type = std::string(kv_type_name(session.model.kv_type())),
          .backend = std::string(backend_name(run.decoder.backend)),
          .transport = run.launch.transport,
          .ranks = run.launch.ranks};
}

}  // namespace ferry
