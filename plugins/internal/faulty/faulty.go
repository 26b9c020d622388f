// Package faulty is a Kubernetes API client for tests that fails one call of many. A test
// repeats the same steps, and lets each of their calls fail in turn.
package faulty

import (
	"context"
	"errors"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// ErrInjected is the error of the call that fails.
var ErrInjected = errors.New("injected fault")

// Fault is the one call that fails.
type Fault struct {
	// Call counts from 1. With 0, no call fails.
	Call int
	// After executes the call and loses its answer.
	After bool

	mu    sync.Mutex
	seen  int
	fired string
}

// Fired describes the call that failed. It is "" if there were fewer calls.
func (f *Fault) Fired() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// Client passes calls to c, except the one that fails.
func (f *Fault) Client(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			return f.do("get "+key.String(), func() error { return c.Get(ctx, key, obj, opts...) })
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return f.do("list", func() error { return c.List(ctx, list, opts...) })
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return f.do("create "+obj.GetName(), func() error { return c.Create(ctx, obj, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return f.do("delete "+obj.GetName(), func() error { return c.Delete(ctx, obj, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return f.do("patch "+obj.GetName(), func() error { return c.Patch(ctx, obj, patch, opts...) })
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			return f.do("update "+obj.GetName(), func() error { return c.Update(ctx, obj, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, name string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			return f.do("patch "+name+" of "+obj.GetName(), func() error { return c.SubResource(name).Patch(ctx, obj, patch, opts...) })
		},
	})
}

func (f *Fault) do(what string, call func() error) error {
	f.mu.Lock()
	f.seen++
	mine := f.seen == f.Call
	if mine {
		f.fired = what
	}
	f.mu.Unlock()
	if !mine {
		return call()
	}
	if f.After {
		if err := call(); err != nil {
			return err
		}
	}
	return ErrInjected
}
