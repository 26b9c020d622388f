// Package fault sorts the errors of a mover pod by what follows from them:
//
//	class    what it is                                    what follows
//	Outage   the object store does not answer              the operation waits for it
//	Passing  another attempt may not meet it               another attempt, of a few
//	Final    it says what is wrong with data or request    the operation fails
//
// Before another attempt, the checkpoint of an image stays. After a Final error it is
// dropped: what failed may be what it recorded.
//
// An error is Passing unless something says otherwise. A storage, a network and a
// credential that is being rotated fail in more ways than anybody can list, and an attempt
// more costs little.
//
// The package is pure.
package fault

import (
	"errors"

	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/repository"
)

// Class says what follows from an error.
type Class string

// The classes. A report without a class is Final.
const (
	Final   Class = ""
	Passing Class = "passing"
	Outage  Class = "outage"
)

// Known reports whether this is one of the classes.
func (c Class) Known() bool { return c == Final || c == Passing || c == Outage }

// errFinal is wrapped by Mark.
var errFinal = errors.New("final")

type final struct{ error }

func (f final) Unwrap() []error { return []error{f.error, errFinal} }

// Mark makes an error Final. It keeps the text.
func Mark(err error) error {
	if err == nil {
		return nil
	}
	return final{err}
}

// Of returns the class of an error.
func Of(err error) Class {
	switch {
	case errors.Is(err, repository.ErrUnavailable):
		return Outage
	case errors.Is(err, errFinal), errors.Is(err, datapath.ErrTooSmall),
		errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrCorrupt):
		return Final
	}
	return Passing
}
