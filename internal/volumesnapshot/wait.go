package volumesnapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/blockmover/blockmover/internal/phase"
)

// ErrExhausted is wrapped by the error of a wait in which the storage said that it
// has no room for the snapshot, for example because it has its maximum number of
// snapshots.
var ErrExhausted = errors.New("the storage takes no more snapshots")

// ErrGone says that somebody else deleted the VolumeSnapshot that is waited for.
var ErrGone = fmt.Errorf("%w: it was deleted meanwhile", phase.ErrBroken)

// NotYetError says what is missing, or what is not gone yet, or what the storage
// reports instead.
type NotYetError string

// Error implements error.
func (e NotYetError) Error() string { return string(e) }

// HandleDelay is the delay between looks for the handle of a snapshot. The storage
// snapshots a small volume within a second, and Velero takes one snapshot after the
// other, so a delay is a tenth of what was waited already. Looking more often than
// every 2 s does not help if it takes minutes.
func HandleDelay() wait.DelayFunc {
	return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 1.1, Cap: 2 * time.Second, Steps: 1 << 30}.DelayFunc()
}

// Until calls look until it returns no error, or one that wraps phase.ErrBroken, or
// the context ends. In the last case, the error includes the last NotYetError that
// look returned, and then the call that has failed since, if any. That call alone
// would hide the cause: shortly before the end, the client's rate limiter refuses
// calls that it would have to delay beyond it.
func Until(ctx context.Context, delay wait.DelayFunc, look func(context.Context) error) error {
	var failed error
	seen := NotYetError("the snapshot controller has not answered")
	err := delay.Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		err := look(ctx)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, phase.ErrBroken):
			return false, err
		case errors.As(err, &seen):
			failed = nil
		case ctx.Err() == nil:
			failed = err
		}
		return false, nil
	})
	switch {
	case err == nil, errors.Is(err, phase.ErrBroken):
		return err
	case failed != nil:
		return fmt.Errorf("%w: %w; then: %w", err, exhausted(seen), failed)
	}
	return fmt.Errorf("%w: %w", err, exhausted(seen))
}

// exhausted wraps the text of a full storage by ErrExhausted. The sidecar passes the
// driver's gRPC code on as text only.
func exhausted(seen NotYetError) error {
	if strings.Contains(string(seen), codes.ResourceExhausted.String()) {
		return fmt.Errorf("%w: %w", ErrExhausted, seen)
	}
	return seen
}
