#include "ferry/server/generation.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"

namespace ferry {

using Json = nlohmann::ordered_json;

std::string cache_salt(const JsonFields& fields) {
  const std::string salt = fields.text("cache_salt").value_or("");
  const std::string key = fields.text("extra_key").value_or("");
  return key.empty() ? salt : fmt::format("{}:{}{}", salt.size(), salt, key);
}

std::optional<int> max_new_tokens(const JsonFields& fields,
                                  std::initializer_list<const char*> names,
                                  int least) {
  std::optional<int> most;
  for (const char* name : names) {
    if (const auto v = fields.integer(name)) {
      if (*v < least || *v > INT32_MAX)
        fail<ConfigError>("\"{}\" must be at least {}, not {}", name, least, *v);
      most = static_cast<int>(*v);
    }
  }
  return most;
}

int top_logprobs(const JsonFields& fields, const char* name) {
  return fields.integer(name, 0, kMaxTopLogprobs).value_or(0);
}

void check_lengths(const ServedModel& model,
                   const std::vector<std::vector<std::int32_t>>& prompts) {
  for (const std::vector<std::int32_t>& prompt : prompts) {
    if (prompt.size() <= static_cast<std::size_t>(model.max_context)) continue;
    // In the words that clients look for.
    throw HttpError(400,
                    fmt::format("This model's maximum context length is {} tokens, but the prompt "
                                "has {}; shorten it or, where the model allows, raise "
                                "--context-length",
                                model.max_context,
                                prompt.size()),
                    "context_length_exceeded");
  }
}

std::vector<std::string> call_names(const JsonFields& fields, std::size_t prompts) {
  const Json* rid = fields.find("rid");
  std::vector<std::string> names = fields.texts("rid");
  if (names.empty()) return {""};
  if (rid->is_array() && names.size() != prompts)
    fail<ConfigError>(
        "\"rid\" has {} members for {} prompts; give one for each, or one that is no "
        "list",
        names.size(),
        prompts);
  return names;
}

GenerationModel for_generation(const ServedModel& model) {
  return {.tokenizer = model.tokenizer,
          .eos_ids = model.config->eos_ids,
          .max_context = model.max_context};
}

std::vector<Generation::Piece> abort(Generation& generation, const AbortFlag& aborted) {
  std::vector<Generation::Piece> last;
  const std::size_t choices = generation.choices().size();
  for (std::size_t i = 0; i < choices; ++i) {
    const bool ends = aborted.set(i * aborted.parts() / choices);
    if (!ends || !generation.choices()[i].finish.empty()) continue;
    generation.cancel(i);
    last.push_back({.choice = i, .text = "", .token = Generation::kNoToken});
  }
  return last;
}

std::function<void(std::function<void()>)> listener_of(std::shared_ptr<Generation> generation,
                                                       CallRegistry::Aborted aborted) {
  return [generation = std::move(generation),
          aborted = std::move(aborted)](const std::function<void()>& wake) {
    aborted->listen(wake);
    generation->listen(wake);
  };
}

HttpReply answer_when_done(std::shared_ptr<Generation> generation,
                           std::function<std::string(Generation&)> whole,
                           CallRegistry::Aborted aborted) {
  HttpReply reply{.listen = listener_of(generation, aborted), .whole = true};
  reply.next = [generation = std::move(generation),
                whole = std::move(whole),
                aborted = std::move(aborted),
                told = false]() mutable -> std::optional<std::string> {
    if (told) return std::nullopt;
    if (aborted->set()) static_cast<void>(abort(*generation, *aborted));
    do {
      static_cast<void>(generation->next(std::chrono::milliseconds(0)));
    } while (generation->ready());
    if (!generation->done()) return "";
    told = true;
    return whole(*generation);
  };
  return reply;
}

std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special) {
  if (model.tokenizer == nullptr)
    fail<ConfigError>("this model has no tokenizer; send token ids instead of text");
  return model.tokenizer->encode(text, add_special);
}

}  // namespace ferry
