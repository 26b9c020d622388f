package operation

import (
	"encoding/json"
	"fmt"
	"time"

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
func (v Verified) String() string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("render verification: %v", err)) // it has a time and texts
	}
	return string(text)
}
