// Messages -> the prompt that a chat model was trained on, by the template its checkpoint carries.
// What of Jinja is supported: docs/checkpoints.md.
#pragma once

#include <cstddef>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ferry {

/// Borrowed for the call. Mappings are printed in the order of their keys here, which is why they
/// are ordered_json: a plain json would sort what the client sent.
struct ChatRenderOptions {
  bool add_generation_prompt = true;              ///< end with what an answer begins with
  const nlohmann::ordered_json* tools = nullptr;  ///< a list; null: none
  /// An object of further variables, such as enable_thinking; null: none.
  const nlohmann::ordered_json* extra = nullptr;
  std::optional<std::time_t> now;     ///< what strftime_now() tells; else the clock does
  std::size_t max_bytes = 16U << 20;  ///< of the prompt
};

/// Immutable; const use from several threads is safe. Copies share one template.
class ChatTemplate {
 public:
  /// Names of special tokens and their texts: {"bos_token", "<s>"}.
  using Tokens = std::vector<std::pair<std::string, std::string>>;

  /// From <directory>/chat_template.jinja (and chat_templates/*.jinja) or else "chat_template" in
  /// tokenizer_config.json, also that of another source (a file): a string or a list of named
  /// templates. Nothing when there is none.
  /// A template that is damaged or asks for what is not supported loads all the same, so that the
  /// model can be run without it; warnings() tells. Throws ModelError for a damaged
  /// tokenizer_config.json.
  static std::optional<ChatTemplate> load(const std::filesystem::path& directory);

  /// One template from its text; `file` is what errors call it. Throws ModelError with file and
  /// line for what is no template.
  static ChatTemplate parse(std::string_view source, const std::string& file, Tokens tokens = {});

  /// Why some or all chats are refused, a line each with file and line: what a template asks for
  /// and is not supported, and templates that are none. Empty: all is well.
  const std::vector<std::string>& warnings() const;

  /// The sources of all templates that are there, one behind the other.
  const std::string& text() const;

  /// The prompt, in UTF-8. It holds the special tokens as text, also the first one, so encode it
  /// with add_special = false. With tools the template named "tool_use" is taken where there is
  /// one, else "default". Throws ConfigError with file and line when messages are no list of
  /// objects, when the template refuses them (raise_exception), fails on them or reaches what is
  /// not supported, when it is damaged, or when the work is over the limit.
  std::string render(const nlohmann::ordered_json& messages,
                     const ChatRenderOptions& options = {}) const;

 private:
  struct Parts;

  explicit ChatTemplate(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const Parts> parts_;  // of all copies of this object
};

}  // namespace ferry
