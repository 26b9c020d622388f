package phase

import "errors"

// ErrBroken is wrapped by errors that no repetition cures: the work that met one is
// Broken. Other errors may pass, and the step is repeated.
var ErrBroken = errors.New("cannot be done")
