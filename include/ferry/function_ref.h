// A callable borrowed for a call: what std::function is without the copy and its allocation.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace ferry {

template <class Signature>
class FunctionRef;

/// Refers to a callable that must outlive it; meant for parameters. Two words, copied freely.
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  /// A plain function that takes a context behind its arguments, as C interfaces have it.
  FunctionRef(R (*function)(Args..., void*), void* context)
      : function_(function), context_(context) {}

  /// Anything else that can be called so, a lambda for instance.
  template <class F>

  requires(std::is_invocable_r_v<R, F&, Args...> &&
           !std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
           !std::is_function_v<std::remove_reference_t<F>>)
      // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload)
      FunctionRef(F&& callable)
      : function_([](Args... args, void* context) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(context))(std::forward<Args>(args)...);
        }),
        context_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))) {}

  R operator()(Args... args) const { return function_(std::forward<Args>(args)..., context_); }

 private:
  R (*function_)(Args..., void*);
  void* context_;
};

}  // namespace ferry
