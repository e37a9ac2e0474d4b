// Layout, native byte order (ranks of a group run the same program):
//   record    = head, gone, moves, stop u32, next epoch u32, forget all u32, keeps u32,
//               forgotten windows u32, forgotten u32, dropped u32, evicted u32, admissions u32,
//               begins u32, runs u32, passes i32, keep*, forgotten windows' number u64*, forgotten
//               number u64*, dropped id u64*, evicted id u64*, admission*, begin*, run*
//   keep      = sequence u64, number u64, before u64, page u32
//   begin     = sequence u64, number u64, pages u32
//   moves     = plan u64, switches u64, bytes u64
//   admission = id u64, max_new i32, top_k i32, temperature f64, top_p f64, min_p f64,
//               seed u64, logprobs i32 (-1 = none), of the prompt from i32 (-1 = none), prompt u32,
//               stop ids u32, logprob ids u32, generated u32, processors u32, prompt i32*, stop id
//               i32*, logprob id i32*, generated i32*, processor*
//   processor = row of the table u32, integers u32, numbers u32, integer i32*, number f32*
//   run       = id u64, tokens i32, drafts i32, draft u32, draft id i32*
//   result    = head, lost u32, gone, tokens u32, token*, prompts u32, part of a prompt*,
//               drafts u32, draft*, sources u32, source*
//   draft     = id u64, tokens u32, token i32*
//   source    = wait for its tokens u64, for its results u64, rows u64
//   part of a prompt = id u64, position u32, tokens u32, logprobs*
//   token     = id u64, token i32, last u32, sha256 32 bytes, logprobs u32, [logprobs]: what stands
//               in brackets only where that is 1
//   logprobs  = chosen f32, top u32, asked u32, (id i32, logprob f32)* of both
//   head      = magic u32, step u64
//   gone      = u64 [16], a bit a rank
#include "ferry/engine/step_record.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ferry/core/error.h"
#include "ferry/engine/drafts.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/state/state_layout.h"

namespace ferry {

namespace {

constexpr std::uint32_t kRecordMagic = 0x46525243;  // "FRRC"
constexpr std::uint32_t kResultMagic = 0x46525253;  // "FRRS"
constexpr std::size_t kHeadBytes = 4 + 8;
constexpr std::size_t kGoneBytes = sizeof(RankSet);
constexpr std::size_t kMovesBytes = 8 + 8 + 8;
constexpr std::size_t kAdmissionFixedBytes = 8 + 4 + 4 + 8 + 8 + 8 + 8 + 4 + 4 + 4 + 4 + 4 + 4 + 4;
constexpr std::size_t kProcessorFixedBytes = 4 + 4 + 4 + 4;
constexpr std::size_t kRunBytes = 8 + 4 + 4 + 4;
constexpr std::size_t kKeepBytes = 8 + 8 + 8 + 4;
constexpr std::size_t kBeginBytes = 8 + 8 + 4;
constexpr std::size_t kTokenBytes = 8 + 4 + 4 + sizeof(Sha256) + 4;
constexpr std::size_t kLogprobBytes = 4 + 4;
constexpr std::size_t kLogprobsFixedBytes = 4 + 4 + 4;
constexpr std::size_t kMostLogprobsBytes =
    kLogprobsFixedBytes + (kMaxTopLogprobs + kMaxLogprobIds) * kLogprobBytes;
constexpr std::size_t kMostTokenBytes = kTokenBytes + kMostLogprobsBytes;
constexpr std::size_t kPromptBytes = 8 + 4 + 4;
constexpr std::size_t kDraftBytes = 8 + 4;
static_assert(sizeof(TokenLogprob) == kLogprobBytes);

class Writer {
 public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}

  template <class T>
  void value(const T& v) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(&v, sizeof(T));
  }

  template <class T>
  void values(const std::vector<T>& all) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(all.data(), all.size() * sizeof(T));
  }

  void text(const std::string& text) { bytes(text.data(), text.size()); }

  void count(std::size_t n) { value(static_cast<std::uint32_t>(n)); }

  std::size_t written() const { return at_; }

 private:
  void bytes(const void* data, std::size_t n) {
    FERRY_CHECK(n <= out_.size() - at_, "a step record does not fit {} bytes", out_.size());
    if (n > 0) std::memcpy(out_.data() + at_, data, n);
    at_ += n;
  }

  std::span<std::byte> out_;
  std::size_t at_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}

  template <class T>
  T value() {
    static_assert(std::is_trivially_copyable_v<T>);
    T v;
    std::memcpy(&v, take(sizeof(T)), sizeof(T));
    return v;
  }

  /// A number of items that are at least `item_bytes` long each, so that a damaged count cannot
  /// make us reserve memory for what is not there.
  std::size_t count(std::size_t item_bytes) {
    const std::size_t n = value<std::uint32_t>();
    if (n > (in_.size() - at_) / item_bytes) damaged();
    return n;
  }

  template <class T>
  std::vector<T> values(std::size_t n) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(n);
    const std::byte* from = take(n * sizeof(T));
    if (n > 0) std::memcpy(all.data(), from, n * sizeof(T));
    return all;
  }

  std::string text(std::size_t n) {
    const std::byte* from = take(n);
    return {reinterpret_cast<const char*>(from), n};
  }

  void expect_magic(std::uint32_t magic) { expect(value<std::uint32_t>() == magic); }

  void expect(bool sound) const {
    if (!sound) damaged();
  }

 private:
  const std::byte* take(std::size_t n) {
    if (n > in_.size() - at_) damaged();
    const std::byte* from = in_.data() + at_;
    at_ += n;
    return from;
  }

  [[noreturn]] void damaged() const {
    throw TransportError(
        TransportError::Kind::io,
        -1,
        fmt::format("a step record of {} bytes is damaged at byte {}; do all ranks run the same "
                    "program?",
                    in_.size(),
                    at_));
  }

  std::span<const std::byte> in_;
  std::size_t at_ = 0;
};

void write_processor(Writer& w, const ProcessorOptions& options) {
  const std::span<const ProcessorKind* const> kinds = processor_kinds();
  const auto row = std::find_if(kinds.begin(), kinds.end(), [&](const ProcessorKind* kind) {
    return options.name == kind->name;
  });
  FERRY_CHECK(row != kinds.end(), "there is no logits processor \"{}\"", options.name);
  w.count(static_cast<std::size_t>(row - kinds.begin()));
  w.count(options.integers.size());
  w.count(options.numbers.size());
  w.count(options.text.size());
  w.values(options.integers);
  w.values(options.numbers);
  w.text(options.text);
}

ProcessorOptions read_processor(Reader& in) {
  const std::size_t row = in.value<std::uint32_t>();
  in.expect(row < processor_kinds().size());
  ProcessorOptions options{.name = processor_kinds()[row]->name, .integers = {}, .numbers = {}};
  const std::size_t integers = in.count(sizeof(std::int32_t));
  const std::size_t numbers = in.count(sizeof(float));
  const std::size_t text = in.count(1);
  options.integers = in.values<std::int32_t>(integers);
  options.numbers = in.values<float>(numbers);
  options.text = in.text(text);
  return options;
}

void write_admission(Writer& w, const Admission& admission) {
  const Request& r = admission.request;
  w.value(admission.id);
  w.value(static_cast<std::int32_t>(r.max_new_tokens));
  w.value(static_cast<std::int32_t>(r.sampling.top_k));
  w.value(r.sampling.temperature);
  w.value(r.sampling.top_p);
  w.value(r.sampling.min_p);
  w.value(r.sampling.seed);
  w.value(static_cast<std::int32_t>(r.top_logprobs.value_or(-1)));
  w.value(static_cast<std::int32_t>(r.prompt_logprobs_from.value_or(-1)));
  w.count(r.prompt.size());
  w.count(r.stop_ids.size());
  w.count(r.logprob_ids.size());
  w.count(admission.generated.size());
  w.count(r.processors.size());
  w.values(r.prompt);
  w.values(r.stop_ids);
  w.values(r.logprob_ids);
  w.values(admission.generated);
  for (const ProcessorOptions& options : r.processors) write_processor(w, options);
}

Admission read_admission(Reader& in) {
  Admission admission;
  Request& r = admission.request;
  admission.id = in.value<std::uint64_t>();
  r.max_new_tokens = in.value<std::int32_t>();
  r.sampling.top_k = in.value<std::int32_t>();
  r.sampling.temperature = in.value<double>();
  r.sampling.top_p = in.value<double>();
  r.sampling.min_p = in.value<double>();
  r.sampling.seed = in.value<std::uint64_t>();
  const auto logprobs = in.value<std::int32_t>();
  if (logprobs >= 0) r.top_logprobs = logprobs;
  const auto of_prompt = in.value<std::int32_t>();
  if (of_prompt >= 0) r.prompt_logprobs_from = of_prompt;
  const std::size_t prompt = in.count(sizeof(std::int32_t));
  const std::size_t stop_ids = in.count(sizeof(std::int32_t));
  const std::size_t logprob_ids = in.count(sizeof(std::int32_t));
  const std::size_t generated = in.count(sizeof(std::int32_t));
  const std::size_t processors = in.count(kProcessorFixedBytes);
  r.prompt = in.values<std::int32_t>(prompt);
  r.stop_ids = in.values<std::int32_t>(stop_ids);
  r.logprob_ids = in.values<std::int32_t>(logprob_ids);
  admission.generated = in.values<std::int32_t>(generated);
  for (std::size_t i = 0; i < processors; ++i) r.processors.push_back(read_processor(in));
  return admission;
}

void write_keep(Writer& w, const KeepOrder& keep) {
  w.value(keep.sequence);
  w.value(keep.number);
  w.value(keep.before);
  w.value(keep.page);
}

KeepOrder read_keep(Reader& in) {
  KeepOrder keep;
  keep.sequence = in.value<std::uint64_t>();
  keep.number = in.value<std::uint64_t>();
  keep.before = in.value<std::uint64_t>();
  keep.page = in.value<std::uint32_t>();
  return keep;
}

void write_begin(Writer& w, const BeginOrder& begin) {
  w.value(begin.sequence);
  w.value(begin.number);
  w.value(begin.pages);
}

BeginOrder read_begin(Reader& in) {
  BeginOrder begin;
  begin.sequence = in.value<std::uint64_t>();
  begin.number = in.value<std::uint64_t>();
  begin.pages = in.value<std::uint32_t>();
  return begin;
}

void write_logprobs(Writer& w, const Logprobs& logprobs) {
  w.value(logprobs.chosen);
  w.count(logprobs.top.size());
  w.count(logprobs.asked.size());
  w.values(logprobs.top);
  w.values(logprobs.asked);
}

Logprobs read_logprobs(Reader& in) {
  Logprobs logprobs;
  logprobs.chosen = in.value<float>();
  const std::size_t top = in.count(kLogprobBytes);
  const std::size_t asked = in.count(kLogprobBytes);
  logprobs.top = in.values<TokenLogprob>(top);
  logprobs.asked = in.values<TokenLogprob>(asked);
  return logprobs;
}

void write_prompt(Writer& w, const PromptResult& prompt) {
  w.value(prompt.id);
  w.value(prompt.position);
  w.count(prompt.logprobs.size());
  for (const Logprobs& logprobs : prompt.logprobs) write_logprobs(w, logprobs);
}

PromptResult read_prompt(Reader& in) {
  PromptResult prompt;
  prompt.id = in.value<std::uint64_t>();
  prompt.position = in.value<std::uint32_t>();
  const std::size_t tokens = in.count(kLogprobsFixedBytes);
  for (std::size_t i = 0; i < tokens; ++i) prompt.logprobs.push_back(read_logprobs(in));
  return prompt;
}

void write_token(Writer& w, const TokenResult& token) {
  w.value(token.id);
  w.value(token.token);
  w.value(static_cast<std::uint32_t>(token.last));
  w.value(token.logits_sha256);
  w.value(static_cast<std::uint32_t>(token.logprobs.has_value()));
  if (token.logprobs) write_logprobs(w, *token.logprobs);
}

TokenResult read_token(Reader& in) {
  TokenResult token;
  token.id = in.value<std::uint64_t>();
  token.token = in.value<std::int32_t>();
  token.last = in.value<std::uint32_t>() != 0;
  token.logits_sha256 = in.value<Sha256>();
  if (in.value<std::uint32_t>() != 0) token.logprobs = read_logprobs(in);
  return token;
}

}  // namespace

std::size_t encoded_bytes(const Admission& admission) {
  std::size_t numbers = static_cast<std::size_t>(admission.tokens()) +
                        admission.request.stop_ids.size() + admission.request.logprob_ids.size();
  std::size_t text = 0;
  for (const ProcessorOptions& options : admission.request.processors) {
    numbers += options.integers.size() + options.numbers.size();
    text += options.text.size();
  }
  return kAdmissionFixedBytes + admission.request.processors.size() * kProcessorFixedBytes +
         numbers * sizeof(std::int32_t) + text;
}

std::vector<std::int32_t> Admission::ids() const {
  std::vector<std::int32_t> all = request.prompt;
  all.insert(all.end(), generated.begin(), generated.end());
  return all;
}

std::size_t record_bytes_without_admissions(int sequences, int tokens) {
  // A sequence that was dropped may have made room for one that runs; none is dropped and evicted.
  // Drafts are a step's tokens. A step's tokens fill a page for each kPagePositions, and each
  // sequence's first of them one that had others already.
  return kHeadBytes + kGoneBytes + kMovesBytes + 12 * sizeof(std::uint32_t) +
         kMostForgotten * sizeof(std::uint64_t) +
         static_cast<std::size_t>(tokens / kPagePositions) * kKeepBytes +
         static_cast<std::size_t>(tokens) * sizeof(std::int32_t) +
         static_cast<std::size_t>(sequences) *
             (kKeepBytes + kBeginBytes + kRunBytes + sizeof(std::uint64_t));
}

std::size_t record_capacity(int max_context, int sequences, int tokens) {
  return record_bytes_without_admissions(sequences, tokens) + kAdmissionFixedBytes +
         processor_kinds().size() * kProcessorFixedBytes +
         (static_cast<std::size_t>(max_context) + kMaxStopIds + kMaxLogprobIds +
          kMaxProcessorNumbers) *
             sizeof(std::int32_t) +
         kMaxProcessorText;
}

std::size_t result_capacity(int sequences, int tokens, int ranks) {
  return kHeadBytes + kGoneBytes + 5 * sizeof(std::uint32_t) +
         static_cast<std::size_t>(ranks) * sizeof(SourceStats) +
         static_cast<std::size_t>(sequences) *
             (kPromptBytes + kDraftBytes + kMostDraftTokens * sizeof(std::int32_t)) +
         static_cast<std::size_t>(tokens) * kMostTokenBytes;
}

std::size_t encode(const StepRecord& record, std::span<std::byte> out) {
  Writer w(out);
  w.value(kRecordMagic);
  w.value(record.step);
  w.value(record.gone);
  w.value(record.moves.plan);
  w.value(record.moves.switches);
  w.value(record.moves.bytes);
  w.value(static_cast<std::uint32_t>(record.stop));
  w.value(static_cast<std::uint32_t>(record.next_epoch));
  w.value(static_cast<std::uint32_t>(record.forget_all));
  w.count(record.keeps.size());
  w.count(record.forgotten_windows.size());
  w.count(record.forgotten.size());
  w.count(record.dropped.size());
  w.count(record.evicted.size());
  w.count(record.admissions.size());
  w.count(record.begins.size());
  w.count(record.runs.size());
  w.value(record.passes);
  for (const KeepOrder& keep : record.keeps) write_keep(w, keep);
  w.values(record.forgotten_windows);
  w.values(record.forgotten);
  w.values(record.dropped);
  w.values(record.evicted);
  for (const Admission& admission : record.admissions) write_admission(w, admission);
  for (const BeginOrder& begin : record.begins) write_begin(w, begin);
  for (const SequenceRun& run : record.runs) {
    w.value(run.id);
    w.value(run.tokens);
    w.value(run.drafts);
    w.count(run.draft.size());
    w.values(run.draft);
  }
  return w.written();
}

std::size_t encode(const StepResult& result, std::span<std::byte> out) {
  Writer w(out);
  w.value(kResultMagic);
  w.value(result.step);
  w.value(static_cast<std::uint32_t>(result.lost));
  w.value(result.gone);
  w.count(result.tokens.size());
  for (const TokenResult& token : result.tokens) write_token(w, token);
  w.count(result.prompts.size());
  for (const PromptResult& prompt : result.prompts) write_prompt(w, prompt);
  w.count(result.drafts.size());
  for (const DraftResult& draft : result.drafts) {
    w.value(draft.id);
    w.count(draft.tokens.size());
    w.values(draft.tokens);
  }
  w.count(result.sources.size());
  w.values(result.sources);
  return w.written();
}

StepRecord decode_step_record(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect_magic(kRecordMagic);
  StepRecord record;
  record.step = in.value<std::uint64_t>();
  record.gone = in.value<RankSet>();
  record.moves.plan = in.value<std::uint64_t>();
  record.moves.switches = in.value<std::uint64_t>();
  record.moves.bytes = in.value<std::uint64_t>();
  record.stop = in.value<std::uint32_t>() != 0;
  record.next_epoch = in.value<std::uint32_t>() != 0;
  record.forget_all = in.value<std::uint32_t>() != 0;
  const std::size_t keeps = in.count(kKeepBytes);
  const std::size_t forgotten_windows = in.count(sizeof(std::uint64_t));
  const std::size_t forgotten = in.count(sizeof(std::uint64_t));
  const std::size_t dropped = in.count(sizeof(std::uint64_t));
  const std::size_t evicted = in.count(sizeof(std::uint64_t));
  const std::size_t admissions = in.count(kAdmissionFixedBytes);
  const std::size_t begins = in.count(kBeginBytes);
  const std::size_t runs = in.count(kRunBytes);
  record.passes = in.value<std::int32_t>();
  for (std::size_t i = 0; i < keeps; ++i) record.keeps.push_back(read_keep(in));
  record.forgotten_windows = in.values<std::uint64_t>(forgotten_windows);
  record.forgotten = in.values<std::uint64_t>(forgotten);
  record.dropped = in.values<std::uint64_t>(dropped);
  record.evicted = in.values<std::uint64_t>(evicted);
  for (std::size_t i = 0; i < admissions; ++i) record.admissions.push_back(read_admission(in));
  for (std::size_t i = 0; i < begins; ++i) record.begins.push_back(read_begin(in));
  for (std::size_t i = 0; i < runs; ++i) {
    SequenceRun& run = record.runs.emplace_back();
    run.id = in.value<std::uint64_t>();
    run.tokens = in.value<std::int32_t>();
    run.drafts = in.value<std::int32_t>();
    run.draft = in.values<std::int32_t>(in.count(sizeof(std::int32_t)));
  }
  return record;
}

StepResult decode_step_result(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect_magic(kResultMagic);
  StepResult result;
  result.step = in.value<std::uint64_t>();
  result.lost = in.value<std::uint32_t>() != 0;
  result.gone = in.value<RankSet>();
  const std::size_t tokens = in.count(kTokenBytes);
  for (std::size_t i = 0; i < tokens; ++i) result.tokens.push_back(read_token(in));
  const std::size_t prompts = in.count(kPromptBytes);
  for (std::size_t i = 0; i < prompts; ++i) result.prompts.push_back(read_prompt(in));
  const std::size_t drafts = in.count(kDraftBytes);
  for (std::size_t i = 0; i < drafts; ++i) {
    DraftResult& draft = result.drafts.emplace_back();
    draft.id = in.value<std::uint64_t>();
    draft.tokens = in.values<std::int32_t>(in.count(sizeof(std::int32_t)));
  }
  result.sources = in.values<SourceStats>(in.count(sizeof(SourceStats)));
  return result;
}

}  // namespace ferry
