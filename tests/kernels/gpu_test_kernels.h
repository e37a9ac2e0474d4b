// Small kernels of the kinds that the exchange has, each right, and wrong in the ways that the
// emulator must find. Compiles for CUDA as well.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ferry/kernels/gpu/thread.h"

namespace ferry::testing {

/// What is wrong with a kernel.
enum class Plant {
  nothing,
  no_barrier,            ///< between writing and reading what other threads wrote
  no_second_barrier,     ///< between reading and writing it again
  plain_store,           ///< instead of a release
  plain_load,            ///< instead of an acquire
  no_fence,              ///< before the relaxed addition that publishes
  no_fence_behind,       ///< the relaxed addition that tells that all have published
  fence_of_another,      ///< thread fences instead of the one that publishes
  early_release,         ///< before the block's barrier
  one_off,               ///< in a slot's number
  past_the_end,          ///< of a buffer
  unaligned,             ///< a wide access
  unwritten,             ///< shared memory is read
  branch_barrier,        ///< one side of a branch has another barrier
  branch_shuffle,        ///< half of a warp shuffles
  early_return,          ///< of lanes that others shuffle with
  no_sync_warp,          ///< between lanes that share memory
  endless,               ///< a wait for what nobody does
  no_wait,               ///< for copies that are under way
  overlapping_messages,  ///< the sender does not wait until a slot is free
};

/// sums[block] = the sum of the block's `width` values; whole blocks of shared floats.
template <Plant plant = Plant::nothing>
struct BlockSum {
  const float* values;
  float* sums;
  int width;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    auto* const partial = reinterpret_cast<float*>(t.shared());
    float sum = 0.0F;
    for (int round = 0; round < 2; ++round) {
      sum = sum_of_round(t, partial, round, sum);
      if (plant != Plant::no_second_barrier) t.sync();
    }
    if (t.thread() == 0) t.store(sums + t.block() + (plant == Plant::one_off ? 1 : 0), sum);
  }

 private:
  // Two rounds, odd and even values, use the same shared memory.
  template <class Thread>
  FERRY_GPU float sum_of_round(Thread& t, float* partial, int round, float sum) const {
    const float* const mine = values + t.block() * width;
    const int end = plant == Plant::past_the_end ? width + 1 : width;
    float own = 0.0F;
    for (int i = 2 * t.thread() + round; i < end; i += 2 * t.threads()) own += t.load(mine + i);
    if (plant == Plant::branch_shuffle) {
      if (t.lane() < 16) own += t.shuffle_xor(own, 1);
    } else if (plant == Plant::early_return && t.lane() == 7) {
      return sum;
    } else {
      for (int mask = 16; mask > 0; mask /= 2) own += t.shuffle_xor(own, mask);
    }
    if (t.lane() == 0 && (plant != Plant::unwritten || t.warp() > 0)) {
      t.store(partial + t.warp(), own);
    }
    if (plant == Plant::branch_barrier) {
      if (t.warp() == 0) {  // NOLINT(bugprone-branch-clone): two places
        t.sync();
      } else {
        t.sync();
      }
    } else if (plant != Plant::no_barrier) {
      t.sync();
    }
    for (int warp = 0; warp < t.warps(); ++warp) sum += t.load(partial + warp);
    return sum;
  }
};

/// What lanes leave for each other in shared memory: out[i] = in[i] + in[its neighbour].
template <Plant plant = Plant::nothing>
struct WarpNeighbours {
  const std::uint32_t* in;
  std::uint32_t* out;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    auto* const mine = reinterpret_cast<std::uint32_t*>(t.shared()) + t.warp() * kWarpThreads;
    const int i = t.block() * t.threads() + t.thread();
    t.store(mine + t.lane(), t.load(in + i));
    if (plant != Plant::no_sync_warp) t.sync_warp();
    t.store(out + i, t.load(mine + t.lane()) + t.load(mine + (t.lane() ^ 1)));
  }
};

/// ends[i] = values[0] + ... + values[i], over all blocks: a block waits for the one before it.
template <Plant plant = Plant::nothing>
struct PrefixSum {
  const std::uint32_t* values;
  std::uint32_t* ends;
  std::uint32_t* totals;  ///< of the blocks, what comes before the next one
  std::uint32_t* ready;   ///< of the blocks; zero at first
  std::uint32_t* ticket;  ///< zero at first; blocks are numbered as they begin

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    auto* const shared = reinterpret_cast<std::uint32_t*>(t.shared());
    if (t.thread() == 0) t.store(shared, t.add(ticket, 1));
    t.sync();
    const auto block = static_cast<int>(t.load(shared));
    const int i = block * t.threads() + t.thread();
    std::uint32_t end = in_warp(t, t.load(values + i));
    if (t.lane() == kWarpThreads - 1) t.store(shared + 1 + t.warp(), end);
    t.sync();
    for (int warp = 0; warp < t.warp(); ++warp) end += t.load(shared + 1 + warp);
    if (t.thread() == 0) t.store(shared + 1 + t.warps(), block == 0 ? 0 : before(t, block));
    t.sync();
    end += t.load(shared + 1 + t.warps());
    t.store(ends + i, end);
    if (t.thread() == t.threads() - 1) publish(t, block, end);
  }

 private:
  template <class Thread>
  FERRY_GPU std::uint32_t in_warp(Thread& t, std::uint32_t value) const {
    for (int lanes = 1; lanes < kWarpThreads; lanes *= 2) {
      const std::uint32_t below = t.shuffle_up(value, lanes);
      if (t.lane() >= lanes) value += below;
    }
    return value;
  }

  template <class Thread>
  FERRY_GPU std::uint32_t before(Thread& t, int block) const {
    const int slot = plant == Plant::one_off ? block - 2 : block - 1;
    if (slot < 0) return 0;
    if (plant == Plant::plain_load) {
      while (t.load(ready + slot) == 0) t.pause();
    } else {
      const std::uint32_t wanted = plant == Plant::endless ? 2 : 1;
      while (t.load_acquire(ready + slot) < wanted) t.pause();
    }
    return t.load(totals + (block - 1));
  }

  template <class Thread>
  FERRY_GPU void publish(Thread& t, int block, std::uint32_t end) const {
    if (plant == Plant::early_release) t.store_release(ready + block, 1);
    t.store(totals + block, end);
    if (plant == Plant::plain_store) {
      t.store(ready + block, 1);
    } else if (plant != Plant::early_release) {
      t.store_release(ready + block, 1);
    }
  }
};

/// *sum = the sum of all blocks' values: the block that is last adds what the others have left.
template <Plant plant = Plant::nothing>
struct LastBlockSum {
  const std::uint32_t* values;
  std::uint32_t* sums;   ///< of the blocks
  std::uint32_t* ended;  ///< zero at first
  std::uint32_t* sum;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    std::uint32_t own = t.load(values + t.block() * t.threads() + t.thread());
    for (int mask = 16; mask > 0; mask /= 2) own += t.shuffle_xor(own, mask);
    if (t.thread() != 0) {  // one warp
      if (plant == Plant::fence_of_another && t.thread() == 1) t.fence();
      return;
    }
    t.store(sums + t.block(), own);
    if (plant != Plant::no_fence && plant != Plant::fence_of_another) t.fence();
    if (t.add(ended, 1) + 1 != static_cast<std::uint32_t>(t.blocks())) return;
    if (plant != Plant::no_fence_behind) t.fence();
    std::uint32_t total = 0;
    for (int block = 0; block < t.blocks(); ++block) total += t.load(sums + block);
    t.store(sum, total);
  }
};

struct alignas(16) Piece {
  std::uint32_t words[4];
};

/// Messages from rank to rank, each of `pieces` pieces: `slots` of them are on their way at once. A
/// block has slots of its own. Both signals are counted: how many were sent, how many are taken.
template <Plant plant = Plant::nothing>
struct SendMessages {
  Piece* slots;          ///< [block][kSlots][pieces], the receiver's
  std::uint64_t* sent;   ///< [block], the receiver's
  std::uint64_t* taken;  ///< [block], the sender's
  int messages;
  int pieces;
  std::uint32_t first;

  static constexpr int kSlots = 2;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    for (int message = 0; message < messages; ++message) {
      if (t.thread() == 0 && message >= kSlots && plant != Plant::overlapping_messages) {
        while (t.load_acquire(taken + t.block()) + kSlots <= static_cast<std::uint64_t>(message)) {
          t.pause();
        }
      }
      t.sync();
      const int slot = (message + (plant == Plant::one_off ? 1 : 0)) % kSlots;
      Piece* const out = slots + (t.block() * kSlots + slot) * pieces;
      for (int i = t.thread(); i < pieces; i += t.threads()) {
        const auto value =
            first + static_cast<std::uint32_t>((t.block() * messages + message) * pieces + i);
        t.store(out + i, Piece{{value, value * 3, value * 5, value * 7}});
      }
      if (plant != Plant::no_barrier) t.sync();
      if (t.thread() != 0) continue;
      if (plant == Plant::plain_store) {
        t.store(sent + t.block(), static_cast<std::uint64_t>(message + 1));
      } else if (plant == Plant::no_fence) {
        add_relaxed(t, sent + t.block());
      } else {
        t.add_release(sent + t.block(), std::uint64_t{1});
      }
    }
  }

 private:
  template <class Thread>
  FERRY_GPU void add_relaxed(Thread& t, std::uint64_t* p) const {
    t.add(p, std::uint64_t{1});
  }
};

/// The other end. out[block][message] = the sum of a message's words.
template <Plant plant = Plant::nothing>
struct TakeMessages {
  const Piece* slots;
  const std::uint64_t* sent;
  std::uint64_t* taken;
  std::uint32_t* out;
  int messages;
  int pieces;
  int blocks_before = 0;  ///< of the launch

  static constexpr int kSlots = 2;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    auto* const sum = reinterpret_cast<std::uint32_t*>(t.shared());
    for (int message = 0; message < messages; ++message) {
      if (t.thread() == 0) {
        wait_for(t, static_cast<std::uint64_t>(message + 1));
        t.store(sum, 0);
      }
      if (plant != Plant::no_barrier) t.sync();
      const Piece* const in = slots + (block(t) * kSlots + message % kSlots) * pieces;
      for (int i = t.thread(); i < pieces; i += t.threads()) {
        const Piece piece = load_piece(t, in + i);
        t.add(sum, piece.words[0] + piece.words[1] + piece.words[2] + piece.words[3]);
      }
      if (plant == Plant::early_release && t.thread() == 0) release(t);
      t.sync();
      if (t.thread() == 0) {
        t.store(out + block(t) * messages + message, t.load(sum));
        if (plant != Plant::early_release) release(t);
      }
    }
  }

 private:
  template <class Thread>
  FERRY_GPU int block(Thread& t) const {
    return t.block() - blocks_before;
  }

  template <class Thread>
  FERRY_GPU void wait_for(Thread& t, std::uint64_t count) const {
    const std::uint64_t* const signal = sent + block(t);
    if (plant == Plant::plain_load) {
      while (t.load(signal) < count) t.pause();
    } else {
      while (t.load_acquire(signal) < count) t.pause();
    }
  }

  template <class Thread>
  FERRY_GPU Piece load_piece(Thread& t, const Piece* p) const {
    if (plant != Plant::unaligned) return t.load(p);
    return t.load(reinterpret_cast<const Piece*>(reinterpret_cast<const std::byte*>(p) + 4));
  }

  template <class Thread>
  FERRY_GPU void release(Thread& t) const {
    if (plant == Plant::plain_store) {
      t.store(taken + block(t), t.load(taken + block(t)) + 1);
    } else {
      t.add_release(taken + block(t), std::uint64_t{1});
    }
  }
};

/// Both ends in one launch.
template <Plant sender, Plant taker>
struct PassMessages {
  SendMessages<sender> send;
  TakeMessages<taker> take;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (t.block() < take.blocks_before) {
      send(t);
    } else {
      take(t);
    }
  }
};

/// sums[block, thread]: each thread adds up what its neighbour copies, 4 numbers in each round,
/// while the next round's are under way.
template <Plant plant = Plant::nothing>
struct CopiedSum {
  const std::uint32_t* values;  ///< [rounds, threads, 4]
  std::uint32_t* sums;
  int rounds;

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    std::uint32_t sum = 0;
    fetch(t, 0);
    for (int round = 0; round < rounds; ++round) {
      fetch(t, round + 1);
      t.template wait_copies<plant == Plant::no_wait ? 2 : 1>();
      if (plant != Plant::no_barrier) t.sync();
      const auto* neighbour =
          reinterpret_cast<const std::uint32_t*>(stage(t, round, (t.thread() + 1) % t.threads()));
      for (int i = 0; i < 4; ++i) sum += t.load(neighbour + i);
      if (plant != Plant::no_second_barrier) t.sync();
    }
    t.store(sums + t.block() * t.threads() + t.thread(), sum);
  }

 private:
  template <class Thread>
  FERRY_GPU std::byte* stage(Thread& t, int round, int thread) const {
    return t.shared() + (round % 2 * t.threads() + thread) * 16;
  }

  // Behind the last round there are zeros.
  template <class Thread>
  FERRY_GPU void fetch(Thread& t, int round) const {
    const bool there = round < rounds;
    const auto* from = reinterpret_cast<const std::byte*>(
        values + (there ? round * t.threads() + t.thread() : 0) * 4);
    t.copy_async(stage(t, round, t.thread()), from, there);
    t.commit_copies();
  }
};

}  // namespace ferry::testing
