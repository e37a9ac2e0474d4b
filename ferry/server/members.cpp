#include "ferry/server/members.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr auto kDone = Member::Fate::done;
constexpr auto kHarmless = Member::Fate::harmless;
constexpr auto kRefused = Member::Fate::refused;

/// How tokens are chosen and when they end, by the same name everywhere.
constexpr auto kSampling = std::to_array<Member>({
    {"temperature", kDone},
    {"top_p", kDone},
    {"top_k", kDone},
    {"min_p", kDone},
    {"seed", kDone},
    {"sampling_seed", kDone},
    {"n", kDone},
    {"stop", kDone},
    {"stop_token_ids", kDone},
    {"ignore_eos", kDone},
    {"skip_special_tokens", kDone},
    {"include_stop_str_in_output", kDone},
    {"no_stop_trim", kDone},
    {"presence_penalty", kDone},
    {"frequency_penalty", kDone},
    {"repetition_penalty", kDone},
    {"logit_bias", kDone},
    {"min_tokens", kDone},
    {"min_new_tokens", kDone},
    {"allowed_token_ids", kDone},
    {"suppress_tokens", kDone},
    {"bad_words", kDone},
    {"max_tokens", kDone},
    {"spaces_between_special_tokens", kHarmless},  // of a tokenizer that is none of ours
    {"stream_interval", kHarmless},
    {"length_penalty", kHarmless},  // of beams
    {"use_beam_search", kRefused, "false"},
    {"early_stopping", kRefused, "false"},
    {"stop_regex", kRefused},
    {"regex", kDone},
    {"ebnf", kDone},
    {"json_schema", kDone},
    {"structural_tag", kDone},
    {"grammar", kDone},
    {"guided_json", kDone},
    {"guided_regex", kDone},
    {"guided_choice", kDone},
    {"guided_grammar", kDone},
    {"guided_json_object", kDone},
    {"guided_decoding_backend", kHarmless},
    {"guided_whitespace_pattern", kHarmless},
    {"structured_outputs", kDone},
    {"custom_params", kRefused},
    {"custom_logit_processor", kRefused},
    {"logits_processors", kRefused},
    {"extra_args", kRefused},
    {"vllm_xargs", kRefused},
    {"typical_p", kRefused, "1"},
    {"tfs_z", kRefused, "1"},
    {"mirostat", kRefused, "0"},
    {"xtc_probability", kRefused, "0"},
    {"dry_multiplier", kRefused, "0"},
    {"dynatemp_range", kRefused, "0"},
    {"n_predict", kRefused, "-1"},
});

/// What a server does beside choosing tokens, of SGLang and vLLM.
constexpr auto kServing = std::to_array<Member>({
    {"stream", kDone},
    {"rid", kDone},
    {"request_id", kHarmless},
    {"priority", kHarmless},
    {"cache_salt", kDone},
    {"extra_key", kDone},
    {"cache_prompt", kHarmless},
    {"custom_labels", kHarmless},
    {"log_metrics", kHarmless},
    {"no_logs", kHarmless},
    {"background", kHarmless},
    {"conversation_id", kHarmless},
    {"data_parallel_rank", kHarmless},
    {"bootstrap_host", kRefused},
    {"bootstrap_port", kRefused},
    {"bootstrap_room", kRefused},
    {"kv_transfer_params", kRefused},
    {"session_params", kRefused},
    {"lora_path", kRefused},
    {"lora_id", kRefused},
    {"return_hidden_states", kRefused, "false"},
    {"return_routed_experts", kRefused, "false"},
});

constexpr auto kGenerate = std::to_array<Member>({
    {"text", kDone},
    {"input_ids", kDone},
    {"sampling_params", kDone},
    {"return_logprob", kDone},
    {"top_logprobs_num", kDone},
    {"logprob_start_len", kDone},
    {"token_ids_logprob", kDone},
    {"return_text_in_logprobs", kHarmless},  // they have it always
    {"input_embeds", kRefused},
    {"image_data", kRefused},
    {"video_data", kRefused},
    {"audio_data", kRefused},
    {"modalities", kHarmless},  // of data that is refused
});

constexpr auto kSamplingParams = std::to_array<Member>({
    {"max_new_tokens", kDone},
    {"max_completion_tokens", kDone},
});

/// What OpenAI's two routes share, with vLLM's additions.
constexpr auto kOpenAi = std::to_array<Member>({
    {"model", kDone},
    {"user", kDone},
    {"logprobs", kDone},
    {"max_completion_tokens", kDone},
    {"stream_options", kDone},
    {"truncate_prompt_tokens", kDone},
    {"add_special_tokens", kDone},
    {"return_tokens_as_token_ids", kDone},
    {"prompt_logprobs", kDone},
    {"return_token_ids", kDone},
    {"metadata", kHarmless},
    {"store", kHarmless},
    {"service_tier", kHarmless},
    {"safety_identifier", kHarmless},
    {"prompt_cache_key", kHarmless},
    {"prompt_cache_retention", kHarmless},
    {"response_format", kDone},
});

constexpr auto kCompletion = std::to_array<Member>({
    {"prompt", kDone},
    {"best_of", kDone},
    {"echo", kDone},
    {"suffix", kRefused},
    {"prompt_embeds", kRefused},
    {"tools", kRefused},
});

constexpr auto kChat = std::to_array<Member>({
    {"messages", kDone},
    {"top_logprobs", kDone},
    {"chat_template_kwargs", kDone},
    {"add_generation_prompt", kDone},
    {"continue_final_message", kDone},
    {"reasoning_effort", kDone},
    {"tools", kDone},
    {"functions", kRefused},
    {"tool_choice", kDone},
    {"function_call", kRefused, R"("none")"},
    {"parallel_tool_calls", kDone},
    {"chat_template", kRefused},
    {"documents", kDone},
    {"audio", kRefused},
    {"modalities", kRefused, R"(["text"])"},
    {"prediction", kHarmless},  // OpenAI's guess at the answer, which changes its speed alone
    {"verbosity", kRefused, R"("medium")"},
    {"web_search_options", kRefused},
    {"mm_processor_kwargs", kHarmless},  // of images, which are refused
    {"media_io_kwargs", kHarmless},
    {"separate_reasoning", kDone},
    {"stream_reasoning", kHarmless},  // how soon it comes
    {"include_reasoning", kDone},
    {"echo", kRefused, "false"},
    {"best_of", kRefused, "1"},
});

/// Anthropic's. What they call as others do, and others' sampling, stands in the shared tables.
constexpr auto kMessages = std::to_array<Member>({
    {"model", kDone},
    {"messages", kDone},
    {"system", kDone},
    {"stop_sequences", kDone},
    {"metadata", kDone},
    {"tools", kDone},
    {"tool_choice", kDone},
    {"thinking", kDone},
    {"output_config", kDone},
    {"chat_template_kwargs", kDone},
    {"cache_control", kHarmless},  // prompts are remembered anyway
    {"service_tier", kHarmless},
    {"speed", kHarmless},
    {"inference_geo", kHarmless},
    {"user_profile_id", kHarmless},
    {"workspace_id", kHarmless},
    {"diagnostics", kHarmless},
    {"container", kRefused},
    {"mcp_servers", kRefused},
    {"context_management", kRefused},
    {"output_format", kDone},
    {"response_format", kRefused},
    {"stop", kRefused},
    {"n", kRefused, "1"},
});

/// OpenAI's responses, likewise.
constexpr auto kResponses = std::to_array<Member>({
    {"model", kDone},
    {"input", kDone},
    {"instructions", kDone},
    {"max_output_tokens", kDone},
    {"tools", kDone},
    {"tool_choice", kDone},
    {"parallel_tool_calls", kDone},
    {"text", kDone},
    {"reasoning", kDone},
    {"include", kDone},
    {"top_logprobs", kDone},
    {"user", kDone},
    {"chat_template_kwargs", kDone},
    {"store", kDone},
    {"previous_response_id", kDone},
    {"metadata", kHarmless},        // comes back as it is
    {"max_tool_calls", kHarmless},  // of tools that OpenAI runs
    {"stream_options", kHarmless},  // padding against who listens to lengths
    {"service_tier", kHarmless},
    {"safety_identifier", kHarmless},
    {"prompt_cache_key", kHarmless},
    {"prompt_cache_retention", kHarmless},
    {"prompt_cache_options", kHarmless},
    {"access_programs", kHarmless},
    {"background_options", kHarmless},
    {"image", kHarmless},  // of images, which are refused
    {"conversation", kRefused},
    {"background", kRefused, "false"},
    {"prompt", kRefused},
    {"truncation", kRefused, R"("disabled")"},
    {"context_management", kRefused},
    {"moderation", kRefused},
    {"messages", kRefused},
    {"response_format", kRefused},
    {"reasoning_effort", kRefused},
    {"max_tokens", kRefused},
    {"n", kRefused, "1"},
});

/// An API's own members, and those of the others that it does not name itself.
std::vector<Member> with_others(std::span<const Member> own, const std::vector<Member>& others) {
  std::vector<Member> all(own.begin(), own.end());
  std::copy_if(others.begin(), others.end(), std::back_inserter(all), [&](const Member& member) {
    return std::none_of(own.begin(), own.end(), [&](const Member& one) {
      return std::string_view(one.name) == member.name;
    });
  });
  return all;
}

template <class... Tables>
std::vector<Member> joined(const Tables&... tables) {
  std::vector<Member> all;
  (all.insert(all.end(), tables.begin(), tables.end()), ...);
  return all;
}

/// Whether a value asks for nothing, for each prompt of a batch too.
bool asks_for_nothing(const Json& value, const Json& nothing) {
  if (value.is_null() || value == nothing) return true;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  if (value.is_array()) {
    return std::all_of(value.begin(), value.end(), [&](const Json& one) {
      return asks_for_nothing(one, nothing);
    });
  }
  return value.is_object() && value.empty();
}

}  // namespace

std::span<const Member> members_of(RequestKind kind) {
  static const std::vector<Member> generate =
      joined(kGenerate, kSamplingParams, kSampling, kServing);
  static const std::vector<Member> params = joined(kSamplingParams, kSampling);
  static const std::vector<Member> completion = joined(kCompletion, kOpenAi, kSampling, kServing);
  static const std::vector<Member> chat = joined(kChat, kOpenAi, kSampling, kServing);
  static const std::vector<Member> others = joined(kSampling, kServing);
  static const std::vector<Member> messages = with_others(kMessages, others);
  static const std::vector<Member> responses = with_others(kResponses, others);
  switch (kind) {
    case RequestKind::generate:
      return generate;
    case RequestKind::sampling_params:
      return params;
    case RequestKind::completion:
      return completion;
    case RequestKind::chat:
      return chat;
    case RequestKind::messages:
      return messages;
    case RequestKind::responses:
      return responses;
  }
  return {};
}

void check_members(RequestKind kind, const Json& object) {
  for (const Member& member : members_of(kind)) {
    if (member.fate != Member::Fate::refused) continue;
    const auto found = object.find(member.name);
    if (found == object.end()) continue;
    const Json nothing = member.nothing == nullptr ? Json() : Json::parse(member.nothing);
    if (asks_for_nothing(*found, nothing)) continue;
    fail<ConfigError>(
        "\"{}\" of {} is not supported; leave it out", member.name, shown_value(*found));
  }
}

Json shared_with_chats(RequestKind kind, const Json& object) {
  const auto is_done = [](RequestKind where, std::string_view name) {
    const auto members = members_of(where);
    return std::any_of(members.begin(), members.end(), [&](const Member& member) {
      return member.fate == Member::Fate::done && member.name == name;
    });
  };
  Json shared = Json::object();
  for (const auto& [name, value] : object.items())
    if (is_done(kind, name) && is_done(RequestKind::chat, name)) shared[name] = value;
  return shared;
}

}  // namespace ferry
