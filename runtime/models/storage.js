'use strict';
// `context.storage`: one JSON document per function, kept by the platform. The object remembers which state of the document its owner
// has seen, so that a write over somebody else's is a conflict.

const DOCUMENT_BYTES_MAX = 500 * 1024;
const { stringify } = JSON;
const byteLength = Buffer.byteLength.bind(Buffer);

function checkArguments(options, callback, needed) {
  if (typeof callback !== 'function' && (needed || callback !== undefined)) throw new Error('Callback must be a function.');
  if (typeof options !== 'object' || options === null) throw new Error('Options must be an object.');
}

class Storage {
  #fn;
  // Undefined before anything was read, null when there was nothing.
  #etag;

  constructor(fn) {
    this.#fn = fn;
  }

  get(options, callback) {
    if (callback === undefined) [options, callback] = [{}, options];
    checkArguments(options, callback, true);
    const { name, control } = this.#fn;
    control.ask({ t: 'storage_get', function: name }).then(
      (answer) => {
        if (answer.error) return callback(new Error(answer.error));
        this.#etag = answer.etag ?? null;
        callback(null, answer.data ?? undefined);
      },
      (error) => callback(error),
    );
  }

  set(data, options, callback) {
    if (callback === undefined && (typeof options === 'function' || options === undefined)) [options, callback] = [{}, options];
    checkArguments(options, callback, false);
    callback ??= () => {};
    const force = Boolean(options.force);
    const deletes = data === undefined || data === null;
    if (!deletes && !force && options.etag === undefined && this.#etag === undefined) {
      throw new Error('When calling storage.set without having called storage.get before, you must specify the .force option.');
    }
    const size = deletes ? 0 : byteLength(stringify(data) ?? '');
    if (size > DOCUMENT_BYTES_MAX) return void process.nextTick(callback, new Error(`The document is larger than ${DOCUMENT_BYTES_MAX} bytes.`));
    const { name, control } = this.#fn;
    const etag = options.etag !== undefined ? options.etag : (this.#etag ?? null);
    // Deleting what was never read means deleting it whatever it is.
    const blind = deletes && options.etag === undefined && this.#etag === undefined;
    control.ask({ t: 'storage_set', function: name, data: deletes ? null : data, etag, force: force || blind }).then(
      (answer) => {
        if (answer.conflict) {
          const error = new Error('Item was modified since it was read.');
          error.code = 409;
          error.conflict = answer.data ?? true;
          return callback(error);
        }
        if (answer.error) return callback(new Error(answer.error));
        this.#etag = answer.etag ?? null;
        callback(null);
      },
      (error) => callback(error),
    );
  }

  get etag() {
    return this.#etag;
  }
}

module.exports = { Storage };
