CREATE TABLE tenants (name TEXT PRIMARY KEY, generation INTEGER NOT NULL, doc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE containers (tenant TEXT NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (tenant, name)) WITHOUT ROWID;
CREATE TABLE functions (tenant TEXT NOT NULL, container TEXT NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, live INTEGER,
  latest INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (tenant, container, name)) WITHOUT ROWID;
CREATE TABLE versions (tenant TEXT NOT NULL, container TEXT NOT NULL, function TEXT NOT NULL, version INTEGER NOT NULL,
  building INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (tenant, container, function, version));
CREATE TABLE version_modules (key TEXT NOT NULL, tenant TEXT NOT NULL, container TEXT NOT NULL, function TEXT NOT NULL,
  version INTEGER NOT NULL, PRIMARY KEY (key, tenant, container, function, version)) WITHOUT ROWID;
CREATE INDEX version_modules_by_version ON version_modules (tenant, container, function, version);
CREATE TABLE tokens (id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, tenant TEXT, doc TEXT NOT NULL);
CREATE INDEX tokens_by_tenant ON tokens (tenant, id);
CREATE TABLE modules (key TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, doc TEXT NOT NULL);
CREATE INDEX modules_by_name ON modules (name, version, key);
CREATE TABLE documents (tenant TEXT NOT NULL, container TEXT NOT NULL, function TEXT NOT NULL, etag INTEGER NOT NULL, doc TEXT,
  PRIMARY KEY (tenant, container, function)) WITHOUT ROWID;
CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, doc TEXT NOT NULL, visible_at_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, receipt TEXT);
CREATE INDEX jobs_by_visibility ON jobs (visible_at_ms, id);
CREATE TABLE dead_jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, doc TEXT NOT NULL);
CREATE TABLE rollbacks (tenant TEXT NOT NULL, container TEXT NOT NULL, function TEXT NOT NULL, chosen_after INTEGER NOT NULL,
  PRIMARY KEY (tenant, container, function)) WITHOUT ROWID;
