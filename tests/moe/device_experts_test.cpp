// Experts of a model on a device, whose rows lie on the host: against the host's own experts, and
// as bytes for any turns that rows are done in. Run by the emulator.
#include "ferry/moe/device_experts.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/moe/experts.h"
#include "support/emulated_queue.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;

constexpr int kHidden = 48, kInter = 32, kSlots = 4;

std::vector<float> random_values(std::size_t n, unsigned seed, float scale) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(engine) * scale;
  return out;
}

/// Packed as a checkpoint's experts are; the last slot is empty.
class PackedExperts {
 public:
  explicit PackedExperts(WeightType type, bool biased = false) {
    const PackedMatrix up{.type = type, .k = kHidden, .n = 2 * kInter};
    const PackedMatrix down{.type = type, .k = kInter, .n = kHidden};
    const std::size_t up_bytes = static_cast<std::size_t>(up.gated_panels()) * up.panel_bytes();
    const std::size_t down_bytes = static_cast<std::size_t>(down.panels()) * down.panel_bytes();
    for (int slot = 0; slot < kSlots; ++slot) {
      GatedFfnWeights& weights = slots_.emplace_back();
      weights.gate_up = up;
      weights.down = down;
      weights.biased = biased;
      if (slot + 1 == kSlots) continue;
      memory_.emplace_back(up_bytes + down_bytes);
      std::byte* to = memory_.back().data();
      for (int part = 0; part < 3; ++part) {
        const bool is_down = part == 2;
        const std::vector<float> rows =
            random_values(kHidden * kInter, static_cast<unsigned>(3 * slot + part), 0.3F);
        const std::int64_t k = is_down ? kInter : kHidden;
        const std::int64_t n = is_down ? kHidden : kInter;
        const auto* plain = reinterpret_cast<const std::byte*>(rows.data());
        QuantizedMatrix quantized;
        if (is_quantized(type)) quantized = quantize_matrix(type, plain, DType::f32, n, k);
        pack_matrix({.type = type,
                     .source = is_quantized(type) ? quantized.codes.data() : plain,
                     .scales = quantized.scales.data(),
                     .scale_rows = rows_per_scale(type),
                     .k = k,
                     .n = n,
                     .out = is_down ? to + up_bytes
                                    : to + static_cast<std::size_t>(part) * up.panel_bytes(),
                     .panel_step = is_down ? 1 : 2});
      }
      weights.gate_up.data = to;
      weights.down.data = to + up_bytes;
      if (!biased) continue;
      biases_.push_back(random_values(2 * kInter + kHidden, static_cast<unsigned>(90 + slot), 1));
      weights.gate_up_bias = biases_.back().data();  // of panels; sizes are whole ones
      weights.down_bias = biases_.back().data() + std::ptrdiff_t{2} * kInter;
    }
  }

  std::span<const GatedFfnWeights> slots() const { return slots_; }

 private:
  std::vector<Buffer> memory_;
  std::vector<std::vector<float>> biases_;
  std::vector<GatedFfnWeights> slots_;
};

/// Rows of three slots, one of them without any, apart from each other.
struct Rows {
  explicit Rows(DType type)
      : in(kPlaces * kHidden),
        out(kPlaces * kHidden * dtype_bytes(type), std::byte{0x55}),
        out_type(type) {
    const std::vector<float> values = random_values(in.size(), 9, 1);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = gpu::f32_to_bf16(values[i]);
  }

  ExpertRows view(bool weighted = false) {
    if (weighted) weights = random_values(kPlaces, 11, 1);
    ExpertRows rows{.format = DispatchFormat::ragged, .counts = counts, .offsets = offsets};
    rows.in = {.base = reinterpret_cast<const std::byte*>(in.data()), .stride = 2 * kHidden};
    rows.in_type = WireType::bf16;
    rows.out = {out.data(), static_cast<std::ptrdiff_t>(kHidden * dtype_bytes(out_type))};
    rows.out_type = out_type;
    rows.hidden = kHidden;
    rows.weights = weights;
    return rows;
  }

  static constexpr std::size_t kPlaces = 24;
  std::vector<std::int32_t> counts = {3, 0, 13, 0};
  std::vector<std::int64_t> offsets = {1, 5, 8, 24};
  std::vector<std::uint16_t> in;
  std::vector<std::byte> out;
  std::vector<float> weights;
  DType out_type;
};

/// What experts are besides their weights.
struct Kind {
  Gating gating = {};
  bool row_weights = false;
};

std::vector<std::byte> on_device(const PackedExperts& experts,
                                 std::int64_t turn,
                                 DType type,
                                 const Kind& kind = {}) {
  GpuEmulator gpu({.seed = 7});
  EmulatedQueue queue(gpu, 3);
  ThreadPool pool(2);
  DeviceExperts device({.slots = kSlots,
                        .hidden = kHidden,
                        .inter = kInter,
                        .gating = kind.gating,
                        .max_rows = turn},
                       queue,
                       pool);
  device.load(2, experts.slots());
  Rows rows(type);
  device.run(2, rows.view(kind.row_weights));
  device.run(2, rows.view(kind.row_weights));
  return rows.out;
}

TEST(DeviceExperts, GiveTheSameBytesInAnyTurns) {
  const PackedExperts experts(WeightType::bf16);
  for (const DType type : {DType::f32, DType::bf16}) {
    const std::vector<std::byte> whole = on_device(experts, 64, type);
    for (const std::int64_t turn : {1, 5, 16})
      EXPECT_EQ(on_device(experts, turn, type), whole) << turn << " rows a turn";
  }
}

/// Rows that nobody has stay as they were.
void expect_close(const PackedExperts& experts, const Kind& kind) {
  const std::vector<std::byte> device = on_device(experts, 64, DType::f32, kind);
  ThreadPool pool(1);
  Experts host({.hidden = kHidden,
                .inter = kInter,
                .gating = kind.gating,
                .dtype = DType::bf16,
                .max_rows = 64,
                .row_weights = kind.row_weights},
               pool);
  Rows rows(DType::f32);
  host.run(rows.view(kind.row_weights), experts.slots());
  const auto* ours = reinterpret_cast<const float*>(device.data());
  const auto* theirs = reinterpret_cast<const float*>(rows.out.data());
  for (std::int64_t i = 0; i < std::ssize(rows.in); ++i) {
    // Numbers between the products are bf16, of about 10: a place of theirs is 1 / 16.
    const float bound = 0.0625F * (1 + std::abs(theirs[i]));
    ASSERT_NEAR(ours[i], theirs[i], bound) << "row " << i / kHidden << " column " << i % kHidden;
  }
  for (const std::int64_t row : {0, 4, 7, 21, 23})
    for (std::int64_t c = row * kHidden; c < (row + 1) * kHidden; ++c)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(ours[c]), 0x55555555U);
}

TEST(DeviceExperts, AreWithinRoundingOfTheHosts) {
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    expect_close(PackedExperts(type), {});
    const Gating clamped{.kind = Gating::Kind::clamped, .alpha = 1.702F, .limit = 7};
    expect_close(PackedExperts(type, /*biased=*/true), {.gating = clamped});
    expect_close(PackedExperts(type), {.row_weights = true});
  }
}

TEST(DeviceExperts, RefuseWhatTheyAreNotMadeFor) {
  GpuEmulator gpu({.seed = 7});
  EmulatedQueue queue(gpu, 3);
  ThreadPool pool(1);
  DeviceExperts device(
      {.slots = kSlots, .hidden = kHidden, .inter = kInter, .max_rows = 8}, queue, pool);
  EXPECT_THROW(device.load(0, PackedExperts(WeightType::f32).slots()), ConfigError);
  PackedExperts experts(WeightType::bf16);
  device.load(0, experts.slots());
  Rows rows(DType::f32);
  ExpertRows f32 = rows.view();
  f32.in_type = WireType::f32;
  EXPECT_THROW(device.run(0, f32), BrokenContract);
}

}  // namespace
}  // namespace ferry
