package repository

import "errors"

// ErrUnusable is wrapped by an error of opening a repository that says that what is in the storage, or the password, does not do:
// no image can be read. The same call does not succeed before somebody does something about it.
var ErrUnusable = errors.New("repository cannot be used")

// Loss is something that a repository has lost, and that hides images: a catalog does not list them.
type Loss struct {
	// Cause says what is lost or damaged, and what to do.
	Cause error
	// Images are hidden by it, as far as they can be told, without their Meta. They are complete, unless something else is lost.
	Images []Snapshot
}
