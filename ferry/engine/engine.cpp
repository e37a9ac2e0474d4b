#include "ferry/engine/engine.h"

#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/engine_impl.h"

namespace ferry {

int resolve_context(const ModelConfig& config, int wanted) {
  if (wanted < 0 || wanted > config.max_positions) {
    fail<ConfigError>("a context of {} positions is not possible; the model has 1..{}",
                      wanted,
                      config.max_positions);
  }
  return wanted == 0 ? config.max_positions : wanted;
}

Engine::Engine(const EngineOptions& options, Decoder& decoder, Transport& transport)
    : impl_(std::make_unique<Impl>(options, decoder, transport)) {}

Engine::~Engine() = default;

void Engine::follow(Epochs& epochs, bool comes_late) { impl_->follow(epochs, comes_late); }

std::optional<std::uint64_t> Engine::submit(Request request) {
  return impl_->submit(std::move(request));
}

void Engine::check(const Request& request) const { impl_->check(request); }

void Engine::cancel(std::uint64_t request) { impl_->inbox().cancel(request); }

void Engine::post(std::function<void()> task) { impl_->inbox().post(std::move(task)); }

void Engine::open() { impl_->inbox().set_open(true); }

void Engine::close() { impl_->inbox().set_open(false); }

void Engine::run(const std::function<void(const TokenEvent&)>& on_token) { impl_->run(on_token); }

bool Engine::forget_prefixes() { return impl_->forget_prefixes(); }

EngineStats Engine::stats() const { return impl_->stats(); }

std::int64_t Engine::kv_capacity() const { return impl_->kv_capacity(); }

const Balancer* Engine::balancer() const { return impl_->balancer(); }

Balancer* Engine::balancer() { return impl_->balancer(); }

}  // namespace ferry
