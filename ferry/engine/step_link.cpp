#include "ferry/engine/step_link.h"

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr int kRecordSignal = 0;
constexpr std::size_t kAlignment = 64;

int result_signal(Rank from) { return 1 + from; }

std::size_t aligned(std::size_t bytes) {
  return static_cast<std::size_t>(
      round_up(static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(kAlignment)));
}

}  // namespace

StepLink::StepLink(Transport& transport, std::size_t record_bytes, std::size_t result_bytes)
    : transport_(transport),
      results_(static_cast<std::size_t>(transport.size())),
      record_bytes_(aligned(record_bytes)),
      result_bytes_(aligned(result_bytes)),
      result_out_(record_bytes_),
      records_out_(result_out_ + result_bytes_),
      results_in_(records_out_ + static_cast<std::size_t>(transport.size()) * record_bytes_) {
  const std::size_t max_put = transport.capabilities().max_put_bytes;
  if (record_bytes_ > max_put) {
    fail<ConfigError>(
        "a prompt as long as the context takes {} bytes, but transport {} puts at most {} at once; "
        "lower --context-length",
        record_bytes_,
        transport.name(),
        max_put);
  }
  const std::size_t bytes =
      results_in_ + static_cast<std::size_t>(transport.size()) * result_bytes_;
  region_ = transport.allocate_region(bytes, 1 + transport.size());
}

void StepLink::send_record(Rank peer, const StepRecord& record) {
  const std::span<std::byte> out =
      part(records_out_ + static_cast<std::size_t>(peer) * record_bytes_, record_bytes_);
  const std::size_t bytes = encode(record, out);
  transport_.put({.region = region_.get(),
                  .peer = peer,
                  .offset = 0,
                  .source = out.first(bytes),
                  .signal = kRecordSignal});
}

StepRecord StepLink::receive_record() {
  // Cannot time out without a deadline; a dead peer throws.
  static_cast<void>(transport_.wait(*region_, kRecordSignal, records_ + 1, kNoDeadline));
  ++records_;
  return decode_step_record(part(0, record_bytes_));
}

void StepLink::send_result(const StepResult& result) {
  const std::span<std::byte> out = part(result_out_, result_bytes_);
  const std::size_t bytes = encode(result, out);
  transport_.put(
      {.region = region_.get(),
       .peer = 0,
       .offset = results_in_ + static_cast<std::size_t>(transport_.rank()) * result_bytes_,
       .source = out.first(bytes),
       .signal = result_signal(transport_.rank())});
}

StepResult StepLink::receive_result(Rank peer,
                                    std::uint64_t step,
                                    std::chrono::nanoseconds timeout) {
  const int signal = result_signal(peer);
  std::uint64_t& seen = results_[static_cast<std::size_t>(peer)];
  if (transport_.wait(*region_, signal, seen + 1, deadline_in(timeout)) == WaitResult::timed_out) {
    throw TransportError(
        TransportError::Kind::timeout,
        peer,
        fmt::format("rank {} sent no result within {} s (expected {} results, saw {}); raise "
                    "--timeout if its step only takes long",
                    peer,
                    std::chrono::duration<double>(timeout).count(),
                    seen + 1,
                    transport_.signal_value(*region_, signal)));
  }
  ++seen;
  StepResult result = decode_step_result(
      part(results_in_ + static_cast<std::size_t>(peer) * result_bytes_, result_bytes_));
  FERRY_CHECK(
      result.step == step, "expected rank {}'s result of step {}, got {}", peer, step, result.step);
  return result;
}

}  // namespace ferry
