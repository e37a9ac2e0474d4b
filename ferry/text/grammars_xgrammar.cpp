// Grammars by xgrammar. Masks are made where they are first needed (its "dynamic compilation"), so
// that a schema costs milliseconds however large the vocabulary is; a grammar in EBNF, whose masks
// may take any time, gets all of them while there is somebody to refuse.
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <exception>
#include <list>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "ferry/core/error.h"
#include "ferry/text/ahead_worker.h"
#include "ferry/text/compile_thread.h"
#include "ferry/text/grammars.h"
#include "ferry/text/json_schema.h"
#include "ferry/text/short_repetitions.h"
#include "ferry/text/tokenizer.h"

namespace xgrammar {

namespace {

/// What was told while this thread compiles; null: nobody wants to know.
thread_local std::string* warning = nullptr;

constexpr int kWarning = 2;

}  // namespace

// It is built to call these two, whose names are its own (XGRAMMAR_LOG_CUSTOMIZE).
// NOLINTBEGIN(readability-identifier-naming)

[[noreturn]] void LogFatalImpl(const std::string& /*file*/,
                               int /*line*/,
                               const std::string& message) {
  throw std::runtime_error(message);
}

/// It warns of what it passes over.
void LogMessageImpl(const std::string& /*file*/,
                    int /*line*/,
                    int level,
                    const std::string& message) {
  if (warning != nullptr && warning->empty() && level >= kWarning) *warning = message;
}

// NOLINTEND(readability-identifier-naming)

}  // namespace xgrammar

namespace ferry {

namespace {

constexpr std::chrono::seconds kMostTime{10};
constexpr int kMostWhitespace = 32;  // in a row, between what JSON consists of
constexpr std::size_t kMostKept = 128;
constexpr std::size_t kMostBytes = std::size_t{256} << 20U;     // of all that are kept
constexpr std::size_t kMostBytesEach = std::size_t{64} << 20U;  // then its masks are made anew
constexpr unsigned kMasksBetweenLooks = 256;

struct Kept {
  GrammarText text;
  xgrammar::CompiledGrammar compiled;
  std::size_t bytes = 0;             // as last looked at; guarded by the cache's mutex
  std::atomic<unsigned> masks{0};    // made with it
  std::atomic<bool> retired{false};  // has grown too large: its users take it anew
};

/// In one line, which ends before the text that it is about.
std::string first_line(std::string message) {
  constexpr std::string_view kCheck = "Check failed: ";
  if (const auto check = message.find(kCheck); check == 0) {
    const auto told = message.find(": ", kCheck.size());
    if (told != std::string::npos) message.erase(0, told + 2);
  }
  message = message.substr(0, message.find('\n'));
  constexpr std::size_t kMost = 300;
  return message.size() > kMost ? message.substr(0, kMost) + "..." : message;
}

/// A regular expression as one automaton, whose masks take bounded time; a dot is no line break.
std::string ebnf_of_regex(const std::string& regex) {
  std::string quoted;
  for (const char c : with_short_repetitions(regex)) {
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\r') {
      quoted += "\\r";
    } else {
      if (c == '\\' || c == '"') quoted += '\\';
      quoted += c;
    }
  }
  return "root ::= Regex(\"" + quoted + "\", flags=\"u\")";
}

/// Options of rules that would change how tokens are drawn.
void check_ebnf(const std::string& text) {
  std::string bare;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      bare += text[i];
    }
  }
  for (const char* option : {"temperature=", "temperature ="})
    if (bare.find(option) != std::string::npos)
      fail<ConfigError>("\"temperature\" of a rule is not supported");
}

xgrammar::CompiledGrammar compile(const xgrammar::TokenizerInfo& info, const GrammarText& grammar) {
  const bool all_masks = grammar.kind == GrammarText::Kind::ebnf;
  xgrammar::GrammarCompiler compiler(info, 1, false, -1, !all_masks);
  const auto schema = [&](const std::string& text) {
    return compiler.CompileJSONSchema(supported_schema(text),
                                      /*any_whitespace=*/true,
                                      std::nullopt,
                                      std::nullopt,
                                      /*strict_mode=*/true,
                                      kMostWhitespace);
  };
  switch (grammar.kind) {
    case GrammarText::Kind::json:
      return schema(R"({"type": "object"})");
    case GrammarText::Kind::json_schema:
      return schema(grammar.text);
    case GrammarText::Kind::regex:
      return compiler.CompileGrammar(ebnf_of_regex(grammar.text));
    case GrammarText::Kind::ebnf:
      check_ebnf(grammar.text);
      return compiler.CompileGrammar(grammar.text);
    case GrammarText::Kind::structural_tag:
      return compiler.CompileStructuralTag(supported_tag(grammar.text));
  }
  fail<ConfigError>("there is no such kind of grammar");
}

std::shared_ptr<Kept> compiled(const xgrammar::TokenizerInfo& info, const GrammarText& grammar) {
  std::string warning;
  xgrammar::warning = &warning;
  std::shared_ptr<Kept> kept;
  try {
    kept = std::shared_ptr<Kept>(new Kept{.text = grammar, .compiled = compile(info, grammar)});
  } catch (const Error&) {
    xgrammar::warning = nullptr;
    throw;
  } catch (const std::exception& e) {
    xgrammar::warning = nullptr;
    fail<ConfigError>("the grammar cannot be read: {}", first_line(e.what()));
  }
  xgrammar::warning = nullptr;
  if (!warning.empty()) fail<ConfigError>("the grammar cannot be kept: {}", first_line(warning));
  kept->bytes = kept->compiled.MemorySizeBytes();
  return kept;
}

struct ByteRange {
  unsigned char least;
  unsigned char most;

  bool has(unsigned char byte) const { return byte >= least && byte <= most; }
};

/// Of one tokenizer. Threads: any.
class Cache {
 public:
  Cache(const Tokenizer& tokenizer, int vocab, std::span<const std::int32_t> eos_ids)
      : tokenizer_(tokenizer), vocab_(vocab) {
    for (const std::int32_t id : eos_ids)
      if (id >= 0 && id < vocab) eos_ids_.push_back(id);
  }

  int vocab() const { return vocab_; }

  AheadWorker& worker() { return worker_; }

  /// Empty for special tokens and for those that the tokenizer does not have.
  std::string_view bytes_of(std::int32_t id) const {
    if (id < 0 || id >= tokenizer_.size() || !tokenizer_.has_token(id) || tokenizer_.is_special(id))
      return {};
    return tokenizer_.token_bytes(id);
  }

  /// Takes out of the mask what begins with another byte.
  void forbid_outside(ByteRange range, std::span<std::int32_t> mask) const {
    constexpr std::int32_t kBits = 32;
    for (std::int32_t id = 0; id < vocab_; ++id) {
      const std::string_view bytes = bytes_of(id);
      if (!bytes.empty() && range.has(static_cast<unsigned char>(bytes.front()))) continue;
      mask[static_cast<std::size_t>(id / kBits)] &= ~static_cast<std::int32_t>(1U << (id % kBits));
    }
  }

  /// Null: it is not kept.
  std::shared_ptr<Kept> find(const GrammarText& grammar) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(
        kept_.begin(), kept_.end(), [&](const auto& kept) { return kept->text == grammar; });
    if (found == kept_.end()) return nullptr;
    kept_.splice(kept_.begin(), kept_, found);
    return kept_.front();
  }

  std::shared_ptr<Kept> get(const GrammarText& grammar,
                            std::optional<std::chrono::milliseconds> most) {
    if (auto kept = find(grammar)) return kept;
    if (eos_ids_.empty())
      fail<ConfigError>("the model has no end-of-text token, which a grammar needs");
    auto result = std::make_shared<std::shared_ptr<Kept>>();
    const bool ended =
        run_bounded([result, grammar, info = info()] { *result = compiled(info, grammar); }, most);
    if (!ended)
      fail<ConfigError>("the grammar takes longer than {} s to compile; make it simpler",
                        std::chrono::duration_cast<std::chrono::seconds>(*most).count());
    const std::lock_guard lock(mutex_);
    kept_.push_front(*result);
    make_room();
    return *result;
  }

  /// Masks are made all the time, and take memory.
  void look_at(const std::shared_ptr<Kept>& kept) {
    if (++kept->masks % kMasksBetweenLooks != 0) return;
    const std::size_t bytes = kept->compiled.MemorySizeBytes();
    const std::lock_guard lock(mutex_);
    kept->bytes = bytes;
    if (bytes > kMostBytesEach) {
      kept->retired = true;
      kept_.remove(kept);
    }
    make_room();
  }

  std::size_t kept_bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& kept : kept_) sum += kept->bytes;
    return sum;
  }

 private:
  /// REQUIRES: the mutex is held. Those that sequences use live on until these end.
  void make_room() {
    std::size_t sum = 0;
    std::size_t n = 0;
    for (auto it = kept_.begin(); it != kept_.end();) {
      sum += (*it)->bytes;
      const bool stays = ++n == 1 || (n <= kMostKept && sum <= kMostBytes);
      it = stays ? std::next(it) : kept_.erase(it);
    }
  }

  /// Special tokens have no text here: none of them can stand for a part of it.
  xgrammar::TokenizerInfo info() {
    const std::lock_guard lock(info_mutex_);
    if (!info_) {
      std::vector<std::string> tokens(static_cast<std::size_t>(vocab_));
      for (std::int32_t id = 0; id < std::min(vocab_, tokenizer_.size()); ++id)
        if (tokenizer_.has_token(id) && !tokenizer_.is_special(id))
          tokens[static_cast<std::size_t>(id)] = tokenizer_.token_bytes(id);
      info_.emplace(tokens, xgrammar::VocabType::RAW, vocab_, eos_ids_);
    }
    return *info_;
  }

  const Tokenizer& tokenizer_;
  int vocab_;
  std::vector<std::int32_t> eos_ids_;
  std::mutex info_mutex_;
  std::optional<xgrammar::TokenizerInfo> info_;
  mutable std::mutex mutex_;               // guards what follows
  std::list<std::shared_ptr<Kept>> kept_;  // also their users'; the last used one first
  AheadWorker worker_;                     // last: it ends before what its work needs
};

/// Work that is ahead touches all that is here; whoever is called ends it first.
class Place final : public GrammarState {
 public:
  Place(Cache& cache, const GrammarText& text) : cache_(cache), text_(text) {
    work_ = cache_.worker().post([this] { make_mask(); });
  }

  Place(const Place& other)
      : GrammarState(other), cache_(other.cache_), text_(other.text_), history_(other.history_) {
    other.stop_work();
    kept_ = other.kept_;
    consumed_ = other.consumed_;
    free_ = other.free_;
    if (other.matcher_) matcher_ = other.matcher_->Fork();
  }

  ~Place() override { stop_work(); }

  std::unique_ptr<GrammarState> fork() const override { return std::make_unique<Place>(*this); }

  void advance(std::int32_t token) override {
    stop_work();
    history_.push_back(token);
    work_ = cache_.worker().post([this] { make_mask(); });
  }

  void roll_back(std::size_t tokens) override {
    stop_work();
    work_ = nullptr;
    history_.resize(history_.size() - tokens);
    if (consumed_ <= history_.size()) return;
    const std::size_t back = consumed_ - history_.size();
    const std::size_t unchecked = std::min(back, free_);
    free_ -= unchecked;
    if (back > unchecked) matcher_->Rollback(static_cast<int>(back - unchecked));
    consumed_ = history_.size();
  }

  void mask(std::span<float> logits) override {
    if (work_)
      work_->finish();
    else
      make_mask();
    work_ = nullptr;
    if (failure_) std::rethrow_exception(failure_);
    FERRY_CHECK(std::ssize(logits) == cache_.vocab(),
                "a mask of {} tokens for {} logits",
                cache_.vocab(),
                logits.size());
    if (!restricts_) return;
    constexpr std::size_t kBits = 32;
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (std::size_t word = 0; word < mask_.size(); ++word) {
      const std::span<float> of_word =
          logits.subspan(word * kBits, std::min(kBits, logits.size() - word * kBits));
      auto banned = ~static_cast<std::uint32_t>(mask_[word]);
      if (banned == ~std::uint32_t{0}) {
        std::ranges::fill(of_word, kNever);
        continue;
      }
      for (; banned != 0; banned &= banned - 1) {
        const auto i = static_cast<std::size_t>(std::countr_zero(banned));
        if (i < of_word.size()) of_word[i] = kNever;
      }
    }
  }

 private:
  void stop_work() const {
    if (work_) work_->drop();
  }

  /// On either thread; keeps what it would throw.
  void make_mask() noexcept {
    try {
      take_grammar();
      for (; consumed_ < history_.size(); ++consumed_) {
        const bool fits =
            free_ == 0 && !matcher_->IsTerminated() && matcher_->AcceptToken(history_[consumed_]);
        if (!fits) ++free_;
      }
      restricts_ = free_ == 0 && !matcher_->IsTerminated();
      if (!restricts_) return;
      mask_.assign(static_cast<std::size_t>(xgrammar::GetBitmaskSize(cache_.vocab())), 0);
      std::int64_t words = std::ssize(mask_);
      DLTensor view{.data = mask_.data(),
                    .device = {.device_type = kDLCPU, .device_id = 0},
                    .ndim = 1,
                    .dtype = xgrammar::GetBitmaskDLType(),
                    .shape = &words,
                    .strides = nullptr,
                    .byte_offset = 0};
      restricts_ = matcher_->FillNextTokenBitmask(&view);
      if (const auto second = second_byte()) {
        if (!restricts_) std::ranges::fill(mask_, -1);
        restricts_ = true;
        cache_.forbid_outside(*second, mask_);
      }
      cache_.look_at(kept_);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  /// What may follow a first byte of UTF-8 that has been generated alone: xgrammar takes any byte
  /// of a character's rest, also those that make it longer than it need be, half of a surrogate
  /// pair, or greater than the last one. Empty: it need not be told.
  std::optional<ByteRange> second_byte() const {
    if (history_.empty()) return std::nullopt;
    const std::string_view last = cache_.bytes_of(history_.back());
    if (last.empty()) return std::nullopt;
    switch (static_cast<unsigned char>(last.back())) {
      case 0xe0:
        return ByteRange{0xa0, 0xbf};
      case 0xed:
        return ByteRange{0x80, 0x9f};
      case 0xf0:
        return ByteRange{0x90, 0xbf};
      case 0xf4:
        return ByteRange{0x80, 0x8f};
      default:
        return std::nullopt;
    }
  }

  /// Compiled grammars that have grown too large are left for new ones.
  void take_grammar() {
    if (matcher_ && !kept_->retired) return;
    kept_ = cache_.get(text_, std::nullopt);
    matcher_.emplace(kept_->compiled);
    consumed_ = 0;
    free_ = 0;
  }

  Cache& cache_;
  GrammarText text_;
  std::shared_ptr<Kept> kept_;
  std::optional<xgrammar::GrammarMatcher> matcher_;
  std::vector<std::int32_t> history_;
  std::size_t consumed_ = 0;  // of these, which the matcher knows or would know
  std::size_t free_ = 0;      // of those, the last ones, which the grammar says nothing about
  std::vector<std::int32_t> mask_;
  bool restricts_ = false;  // the mask counts
  std::exception_ptr failure_;
  std::shared_ptr<AheadWork> work_;  // also the worker's while it waits
};

}  // namespace

class Grammars::Impl : public Cache {
 public:
  using Cache::Cache;
};

bool Grammars::built_in() { return true; }

Grammars::Grammars(const Tokenizer& tokenizer, int vocab, std::span<const std::int32_t> eos_ids)
    : impl_(std::make_unique<Impl>(tokenizer, vocab, eos_ids)) {}

Grammars::~Grammars() = default;

void Grammars::check(const GrammarText& grammar) {
  static_cast<void>(impl_->get(grammar, kMostTime));
}

std::unique_ptr<GrammarState> Grammars::begin(const GrammarText& grammar) {
  return std::make_unique<Place>(*impl_, grammar);
}

std::size_t Grammars::kept_bytes() const { return impl_->kept_bytes(); }

}  // namespace ferry
