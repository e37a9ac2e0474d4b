// Messages that a wrong or damaged peer might send: an error, or a wrong sum, but never memory that
// is not ours (the address sanitizer's run of this test says so) and never a wait without end.
#include <gtest/gtest.h>

#include <string>

#include "exchange_harness.h"
#include "ferry/core/error.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::ExchangeCase;
using testing::FakeExperts;

constexpr int kRanks = 2;
constexpr int kExchanges = 6;

struct Setting {
  std::string name;
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  DeepepMode mode = DeepepMode::low_latency;
  DispatchFormat format = DispatchFormat::padded;
  bool hidden_partition = false;
  int tp = 1;
  bool network = false;
  bool row_weights = false;
};

DispatcherOptions options_of(const Setting& setting) {
  DispatcherOptions o{.exchange = exchange_options(setting.backend, setting.mode),
                      .slots_per_rank = 3,
                      .hidden = 16,
                      .topk = 4,
                      .max_tokens = 5,
                      .tp = setting.tp,
                      .row_alignment = 1,
                      .row_weights = setting.row_weights,
                      .timeout = std::chrono::milliseconds(30)};
  if (setting.format != DispatchFormat::padded) o.exchange.format = setting.format;
  o.exchange.hidden_partition = setting.hidden_partition;
  return o;
}

/// The phases without any check of what comes out; every third exchange repeats the routing of the
/// one before.
void run_unchecked(const DispatcherOptions& options, std::uint64_t seed, Transport& transport) {
  ThreadPool pool(1);
  Dispatcher dispatcher(options, transport, pool);
  const Rank rank = transport.rank();
  std::unique_ptr<CachedRouting> kept;
  for (int n = 0; n < kExchanges; ++n) {
    const bool repeat = n % 3 == 2;
    const ExchangeCase exchange{.options = options,
                                .ranks = transport.size(),
                                .seed = seed * 100 + static_cast<std::uint64_t>(n - repeat)};
    const std::vector<float> rows = exchange.rows(rank);
    const std::vector<SlotId> slots = exchange.slots(rank);
    const std::vector<float> weights = exchange.weights(rank);
    const std::vector<float> row_weights = exchange.row_weights(rank);
    std::vector<float> out(rows.size());
    const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * options.hidden;
    dispatcher.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows.data()), stride},
                              .tokens = exchange.tokens(rank),
                              .slots = slots,
                              .weights = weights,
                              .row_weights = row_weights,
                              .cached = repeat ? kept.get() : nullptr});
    dispatcher.dispatch_recv([&](const ExpertRows& r) { FakeExperts::compute(exchange, rank, r); });
    if (n % 3 == 1) kept = dispatcher.keep_routing();
    dispatcher.combine_send();
    dispatcher.combine_recv(
        {.weights = weights, .rows = {reinterpret_cast<std::byte*>(out.data()), stride}});
  }
}

class WrongMessage : public ::testing::TestWithParam<Setting> {};

TEST_P(WrongMessage, IsAnErrorAndNeitherACrashNorAHang) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "whose row a wrong message names may be written meanwhile";
#endif
  const DispatcherOptions options = options_of(GetParam());
  const std::uint64_t rounds = long_tests() ? 3000 : 60;
  for (std::uint64_t seed = 1; seed <= rounds; ++seed) {
    const Faults faults{.seed = seed, .network = GetParam().network, .corrupt = 0.15};
    on_ranks({.ranks = kRanks, .faults = faults}, [&](Transport& transport) {
      try {
        run_unchecked(options, seed, transport);
      } catch (const TransportError& e) {
        transport.abort(e.what());
      }
    });
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All,
    WrongMessage,
    ::testing::Values(
        Setting{.name = "padded"},
        Setting{.name = "pointers", .format = DispatchFormat::row_pointers},
        Setting{.name = "sums", .backend = MoeA2ABackend::deepep, .mode = DeepepMode::normal},
        Setting{.name = "gathered", .backend = MoeA2ABackend::none},
        Setting{
            .name = "perExpertOverNetwork", .backend = MoeA2ABackend::alltoallv, .network = true},
        Setting{.name = "sumsOverNetwork", .backend = MoeA2ABackend::none, .network = true},
        Setting{
            .name = "tilesOverNetwork", .backend = MoeA2ABackend::ascend_fuseep, .network = true},
        Setting{.name = "masking", .backend = MoeA2ABackend::mooncake},
        Setting{.name = "columns", .backend = MoeA2ABackend::alltoallv, .hidden_partition = true},
        Setting{.name = "rowWeights", .row_weights = true},
        Setting{.name = "sumsAndRowWeights", .backend = MoeA2ABackend::none, .row_weights = true},
        Setting{.name = "groups", .tp = 2},
        Setting{.name = "groupsOverNetwork", .tp = 2, .network = true}),
    [](const auto& setting) { return setting.param.name; });

}  // namespace
}  // namespace ferry
