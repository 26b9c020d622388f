package operation

import (
	"context"
	"fmt"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// Find returns an operation of our data mover, or nil if there is none of this
// kind and name.
func Find(ctx context.Context, r client.Reader, kind string, key client.ObjectKey) (*View, error) {
	into, _, err := blank(kind)
	if err != nil {
		return nil, err
	}
	object, err := kube.Find(ctx, r, key, into)
	if err != nil || object == nil {
		return nil, err
	}
	if v := Of(object); v.DataMover == identity.DataMover {
		return v, nil
	}
	return nil, nil
}

// List returns the operations of one kind and of our data mover. It includes those
// that are damaged.
func List(ctx context.Context, r client.Reader, kind string, options ...client.ListOption) ([]*View, error) {
	_, list, err := blank(kind)
	if err != nil {
		return nil, err
	}
	if err := r.List(ctx, list, options...); err != nil {
		return nil, fmt.Errorf("list %ss: %w", kind, err)
	}
	var views []*View
	err = meta.EachListItem(list, func(item runtime.Object) error {
		if v := Of(item); v != nil && v.DataMover == identity.DataMover {
			views = append(views, v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read list of %ss: %w", kind, err)
	}
	return views, nil
}

// blank returns an object and a list of a kind to read into.
func blank(kind string) (client.Object, client.ObjectList, error) {
	switch kind {
	case identity.KindDataUpload:
		return &velerov2alpha1.DataUpload{}, &velerov2alpha1.DataUploadList{}, nil
	case identity.KindDataDownload:
		return &velerov2alpha1.DataDownload{}, &velerov2alpha1.DataDownloadList{}, nil
	}
	return nil, nil, fmt.Errorf("kind of operation is %q, want %s or %s", kind, identity.KindDataUpload, identity.KindDataDownload)
}
