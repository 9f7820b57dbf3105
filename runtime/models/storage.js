'use strict';
// `context.storage`: one JSON document per function, kept by the platform.

function createStorage(fn) {
  let etag = null;

  function get(options, callback) {
    if (typeof options === 'function') callback = options;
    fn.control.ask({ t: 'storage_get', function: fn.name }).then(
      (answer) => {
        if (answer.error) return callback(new Error(answer.error));
        etag = answer.etag ?? null;
        callback(null, answer.data ?? undefined);
      },
      (error) => callback(error),
    );
  }

  function set(data, options, callback) {
    if (typeof options === 'function') [options, callback] = [{}, options];
    options = options ?? {};
    const message = { t: 'storage_set', function: fn.name, data: data ?? null, etag: options.etag ?? etag, force: Boolean(options.force) };
    fn.control.ask(message).then(
      (answer) => {
        if (answer.conflict) {
          const error = new Error('The document was changed by somebody else since it was read.');
          error.code = 409;
          error.conflict = answer.data ?? true;
          return callback(error);
        }
        if (answer.error) return callback(new Error(answer.error));
        etag = answer.etag ?? null;
        callback(null);
      },
      (error) => callback(error),
    );
  }

  return { get, set, get etag() { return etag; } };
}

module.exports = { createStorage };
