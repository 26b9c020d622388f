package operation

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/blockmover/blockmover/internal/fscheck"
	"github.com/blockmover/blockmover/internal/identity"
)

// Verified is what came of reading the whole image of a DataUpload.
type Verified struct {
	At time.Time `json:"at"`
	// OK is set if all of it could be read. Otherwise Detail says what could not.
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// VerifiedOf returns what the newest verification of the image came to, or nil if there was none.
func (v *View) VerifiedOf() (*Verified, error) {
	return decode[Verified](v.Object().GetAnnotations(), identity.AnnotationVerified)
}

// String renders it as VerifiedOf reads it.
func (v Verified) String() string { return render(v) }

// Tested is what came of restoring the image of a DataUpload onto a scratch volume, and of the file
// system there.
type Tested struct {
	At time.Time `json:"at"`
	fscheck.Report
}

// Damaged is the result of a test whose image cannot be restored completely.
const Damaged fscheck.Result = "damaged"

// Sound reports whether nothing is wrong, as far as it was looked at.
func (t Tested) Sound() bool { return t.Result == fscheck.OK || t.Result == fscheck.None }

// Broken reports whether something is known to be wrong.
func (t Tested) Broken() bool { return t.Result == fscheck.Errors || t.Result == Damaged }

// TestedOf returns what the newest restore test of the image came to, or nil if there was none.
func (v *View) TestedOf() (*Tested, error) {
	return decode[Tested](v.Object().GetAnnotations(), identity.AnnotationTested)
}

// String renders it as TestedOf reads it.
func (t Tested) String() string { return render(t) }

func render(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("render verification: %v", err)) // it has a time and texts
	}
	return string(text)
}
