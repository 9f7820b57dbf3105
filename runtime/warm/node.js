'use strict';
// Called at start only, see warm.js.
module.exports = (req, res) => {
  req.resume();
  req.on('end', () => {
    res.setHeader('content-type', 'text/plain');
    res.end(req.url);
  });
};
