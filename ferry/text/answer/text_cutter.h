// What parsers of answers share: text that waits until it is known what it is.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "ferry/text/answer/answer_parser.h"

namespace ferry {

/// A parser over a buffer: it takes steps while it can. A step may depend on what the buffer holds,
/// but not on how much more of it there happens to be: so cuts make no difference.
class SteppingParser : public AnswerParser {
 public:
  void put(std::string_view text, AnswerPiece& out) final;
  void finish(AnswerPiece& out) final;

 protected:
  /// False where more text is needed. With over() it must not wait for any.
  virtual bool step() = 0;

  /// What a text that ends here leaves.
  virtual void end() {}

  std::string& buffer() { return buffer_; }

  bool over() const { return over_; }

  AnswerPiece& out() { return *out_; }

  static constexpr int kNone = -1;

  /// Takes text up to the first of these marks, and the mark, off the buffer; adds the text to
  /// `before`. Returns which mark it was. kNone: there is none as far as the text goes, and what
  /// may be the beginning of one waits.
  int take_until(std::initializer_list<std::string_view> marks, std::string& before);

  /// Content; white space behind it waits for what follows, and around calls it is dropped.
  void show(std::string_view text);

  /// Begins the next call.
  void begin_call(std::string name, std::string id = {});
  void add_arguments(std::string_view json);

  std::size_t calls() const { return calls_; }

 private:
  std::string buffer_;
  std::string held_;  // white space behind content
  AnswerPiece* out_ = nullptr;
  std::size_t calls_ = 0;
  bool behind_call_ = false;  // and no content since
  bool over_ = false;
};

/// A string of JSON, a character at a time.
class JsonString {
 public:
  /// Its first quote has come.
  void begin() { open_ = true; }

  bool open() const { return open_; }

  /// Takes the next character; whether it is the last quote. REQUIRES: open().
  bool ends_with(char c) {
    if (!escaped_ && c == '"') open_ = false;
    escaped_ = !escaped_ && c == '\\';
    return !open_;
  }

 private:
  bool open_ = false;
  bool escaped_ = false;
};

/// {"name": ..., "arguments" or "parameters": ...}, a character at a time.
class CallObject {
 public:
  enum class State : std::uint8_t { going, done, failed };

  /// Sets `name` once it is known, and from then on adds to `arguments`.
  State put(char c, std::string& name, std::string& arguments);

  bool named() const { return named_; }

  /// Nothing but white space has come.
  bool empty() const { return place_ == Place::before; }

 private:
  enum class Place : std::uint8_t { before, key, in_key, colon, value, in_value, next };

  State in_value(char c, std::string& name, std::string& arguments);
  State end_value(std::string& name, std::string& arguments);

  Place place_ = Place::before;
  std::string key_;    // as JSON
  std::string value_;  // the same, as far as it is not handed on
  int depth_ = 0;
  JsonString string_;
  bool named_ = false;
  bool streams_ = false;  // this value's characters are handed on as they come
  std::string waiting_;   // arguments that came before the name
};

/// One JSON value, a character at a time.
class JsonValue {
 public:
  /// Whether the value ends with this character.
  bool put(char c);

 private:
  int depth_ = 0;
  JsonString string_;
};

}  // namespace ferry
