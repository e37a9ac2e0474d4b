#include "errors.h"

#include "ferry/refused.h"

namespace ferry::python {

namespace nb = nanobind;

namespace {

nb::object make(const char* name, const Error& error) {
  return nb::module_::import_("tokenferry.errors").attr(name)(error.what());
}

void raise(const nb::object& error) { PyErr_SetObject(error.type().ptr(), error.ptr()); }

const char* kind_name(TransportError::Kind kind) {
  switch (kind) {
    case TransportError::Kind::timeout:
      return "timeout";
    case TransportError::Kind::peer_died:
      return "peer_died";
    case TransportError::Kind::aborted:
      return "aborted";
    case TransportError::Kind::io:
      return "io";
  }
  return "?";
}

const char* reason_name(Refused::Reason reason) {
  switch (reason) {
    case Refused::Reason::full:
      return "full";
    case Refused::Reason::busy:
      return "busy";
    case Refused::Reason::closing:
      return "closing";
    case Refused::Reason::ended:
      return "ended";
  }
  return "?";
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const StaleRows& error) {
    raise(make("StaleRows", error));
  } catch (const BrokenContract& error) {
    raise(make("BrokenContract", error));
  } catch (const ConfigError& error) {
    raise(make("ConfigError", error));
  } catch (const ModelError& error) {
    raise(make("ModelError", error));
  } catch (const TransportError& error) {
    const nb::object made = make("TransportError", error);
    made.attr("kind") = kind_name(error.kind());
    made.attr("peer") = error.peer();
    raise(made);
  } catch (const Refused& error) {
    const nb::object made = make("Refused", error);
    made.attr("reason") = reason_name(error.reason());
    raise(made);
  } catch (const Error& error) {
    raise(make("Error", error));
  }
}

}  // namespace

void register_errors() { nb::register_exception_translator(translate); }

}  // namespace ferry::python
