// Layout, native byte order (ranks of a group run the same program):
//   record    = head, moves, stop u32, admissions u32, runs u32, admission*, run*
//   moves     = plan u64, switches u64, bytes u64
//   admission = id u64, max_new i32, top_k i32, temperature f64, top_p f64, seed u64,
//               prompt u32, stop ids u32, prompt i32*, stop id i32*
//   run       = id u64, tokens i32
//   result    = head, tokens u32, token*
//   token     = id u64, token i32, last u32, sha256 32 bytes
//   head      = magic u32, step u64
#include "ferry/engine/step_record.h"

#include <cstring>
#include <type_traits>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::uint32_t kRecordMagic = 0x46525243;  // "FRRC"
constexpr std::uint32_t kResultMagic = 0x46525253;  // "FRRS"
constexpr std::size_t kHeadBytes = 4 + 8;
constexpr std::size_t kMovesBytes = 8 + 8 + 8;
constexpr std::size_t kAdmissionFixedBytes = 8 + 4 + 4 + 8 + 8 + 8 + 4 + 4;
constexpr std::size_t kRunBytes = 8 + 4;
constexpr std::size_t kTokenBytes = 8 + 4 + 4 + sizeof(Sha256);

class Writer {
 public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}

  template <class T>
  void value(const T& v) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(&v, sizeof(T));
  }

  void ids(const std::vector<std::int32_t>& values) {
    bytes(values.data(), values.size() * sizeof(std::int32_t));
  }

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

  std::vector<std::int32_t> ids(std::size_t n) {
    std::vector<std::int32_t> values(n);
    const std::byte* from = take(n * sizeof(std::int32_t));
    if (n > 0) std::memcpy(values.data(), from, n * sizeof(std::int32_t));
    return values;
  }

  void expect_magic(std::uint32_t magic) {
    if (value<std::uint32_t>() != magic) damaged();
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

void write_admission(Writer& w, const Admission& admission) {
  const Request& r = admission.request;
  w.value(admission.id);
  w.value(static_cast<std::int32_t>(r.max_new_tokens));
  w.value(static_cast<std::int32_t>(r.sampling.top_k));
  w.value(r.sampling.temperature);
  w.value(r.sampling.top_p);
  w.value(r.sampling.seed);
  w.count(r.prompt.size());
  w.count(r.stop_ids.size());
  w.ids(r.prompt);
  w.ids(r.stop_ids);
}

Admission read_admission(Reader& in) {
  Admission admission;
  Request& r = admission.request;
  admission.id = in.value<std::uint64_t>();
  r.max_new_tokens = in.value<std::int32_t>();
  r.sampling.top_k = in.value<std::int32_t>();
  r.sampling.temperature = in.value<double>();
  r.sampling.top_p = in.value<double>();
  r.sampling.seed = in.value<std::uint64_t>();
  const std::size_t prompt = in.count(sizeof(std::int32_t));
  const std::size_t stop_ids = in.count(sizeof(std::int32_t));
  r.prompt = in.ids(prompt);
  r.stop_ids = in.ids(stop_ids);
  return admission;
}

}  // namespace

std::size_t encoded_bytes(const Admission& admission) {
  return kAdmissionFixedBytes +
         (admission.request.prompt.size() + admission.request.stop_ids.size()) *
             sizeof(std::int32_t);
}

std::size_t record_bytes_without_admissions(int sequences) {
  return kHeadBytes + kMovesBytes + 3 * sizeof(std::uint32_t) +
         static_cast<std::size_t>(sequences) * kRunBytes;
}

std::size_t record_capacity(int max_context, int sequences) {
  return record_bytes_without_admissions(sequences) + kAdmissionFixedBytes +
         (static_cast<std::size_t>(max_context) + kMaxStopIds) * sizeof(std::int32_t);
}

std::size_t result_capacity(int sequences) {
  return kHeadBytes + sizeof(std::uint32_t) + static_cast<std::size_t>(sequences) * kTokenBytes;
}

std::size_t encode(const StepRecord& record, std::span<std::byte> out) {
  Writer w(out);
  w.value(kRecordMagic);
  w.value(record.step);
  w.value(record.moves.plan);
  w.value(record.moves.switches);
  w.value(record.moves.bytes);
  w.value(static_cast<std::uint32_t>(record.stop));
  w.count(record.admissions.size());
  w.count(record.runs.size());
  for (const Admission& admission : record.admissions) write_admission(w, admission);
  for (const SequenceRun& run : record.runs) {
    w.value(run.id);
    w.value(run.tokens);
  }
  return w.written();
}

std::size_t encode(const StepResult& result, std::span<std::byte> out) {
  Writer w(out);
  w.value(kResultMagic);
  w.value(result.step);
  w.count(result.tokens.size());
  for (const TokenResult& token : result.tokens) {
    w.value(token.id);
    w.value(token.token);
    w.value(static_cast<std::uint32_t>(token.last));
    w.value(token.logits_sha256);
  }
  return w.written();
}

StepRecord decode_step_record(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect_magic(kRecordMagic);
  StepRecord record;
  record.step = in.value<std::uint64_t>();
  record.moves.plan = in.value<std::uint64_t>();
  record.moves.switches = in.value<std::uint64_t>();
  record.moves.bytes = in.value<std::uint64_t>();
  record.stop = in.value<std::uint32_t>() != 0;
  const std::size_t admissions = in.count(kAdmissionFixedBytes);
  const std::size_t runs = in.count(kRunBytes);
  for (std::size_t i = 0; i < admissions; ++i) record.admissions.push_back(read_admission(in));
  for (std::size_t i = 0; i < runs; ++i) {
    const auto id = in.value<std::uint64_t>();
    record.runs.push_back({.id = id, .tokens = in.value<std::int32_t>()});
  }
  return record;
}

StepResult decode_step_result(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect_magic(kResultMagic);
  StepResult result;
  result.step = in.value<std::uint64_t>();
  const std::size_t tokens = in.count(kTokenBytes);
  for (std::size_t i = 0; i < tokens; ++i) {
    TokenResult token;
    token.id = in.value<std::uint64_t>();
    token.token = in.value<std::int32_t>();
    token.last = in.value<std::uint32_t>() != 0;
    token.logits_sha256 = in.value<Sha256>();
    result.tokens.push_back(token);
  }
  return result;
}

}  // namespace ferry
