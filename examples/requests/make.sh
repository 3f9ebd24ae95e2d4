#!/bin/sh
# Makes the requests of this folder anew; run it in here. Account, bucket, role and image are placeholders.
set -eu

IMAGE=123456789012.dkr.ecr.eu-west-1.amazonaws.com/ssd-algo:gpu
CPU_IMAGE=123456789012.dkr.ecr.eu-west-1.amazonaws.com/ssd-algo:cpu
ROLE=arn:aws:iam::123456789012:role/ssd-algo
BUCKET=s3://example-bucket

# Photos and JSON annotations below birds/train, birds/train_annotation, birds/validation, birds/validation_annotation.
ssd-algo request train "$IMAGE" num_classes=3 num_training_samples=4800 base_network=resnet-50 epochs=40 \
    --name birds-images --role "$ROLE" --data "$BUCKET/birds" --output "$BUCKET/models" \
    --instance-type ml.g5.2xlarge --max-hours 12 > training-from-images.json

# .rec files, streamed, on two machines of spare capacity.
ssd-algo request train "$IMAGE" num_classes=3 num_training_samples=4800 base_network=resnet-50 epochs=40 \
    --name birds-records --role "$ROLE" --data "$BUCKET/birds-records" --output "$BUCKET/models" \
    --content-type application/x-recordio --input-mode Pipe --instance-type ml.g5.2xlarge --instances 2 \
    --spot --checkpoints "$BUCKET/checkpoints/birds-records" --max-hours 12 > training-from-recordio.json

# New photos, from the model of an earlier training.
ssd-algo request train "$IMAGE" num_classes=3 num_training_samples=1200 base_network=resnet-50 epochs=10 \
    --name birds-again --role "$ROLE" --data "$BUCKET/birds-new" --output "$BUCKET/models" \
    --model "$BUCKET/models/birds-images/output/model.tar.gz" \
    --instance-type ml.g5.2xlarge --max-hours 4 > incremental-training.json

ssd-algo request tune "$IMAGE" num_classes=3 num_training_samples=4800 base_network=resnet-50 epochs=20 recipe=modern \
    --name birds-tuning --role "$ROLE" --data "$BUCKET/birds-records" --output "$BUCKET/models" \
    --content-type application/x-recordio --instance-type ml.g5.2xlarge --max-hours 6 \
    --jobs 20 --parallel 2 > tuning.json

ssd-algo request model "$CPU_IMAGE" SSD_ALGO_PRECISION=int8 --name birds --role "$ROLE" \
    --model-data "$BUCKET/models/birds-images/output/model.tar.gz" > model.json

ssd-algo request endpoint birds --name birds --instance-type ml.c5.2xlarge --part config > endpoint-config.json
ssd-algo request endpoint birds --name birds --instance-type ml.c5.2xlarge --part endpoint > endpoint.json

ssd-algo request transform birds --name birds-batch --data "$BUCKET/birds/validation" --output "$BUCKET/answers" \
    --instance-type ml.c5.2xlarge --accept "application/json;annotation=1;names=1" > batch-transform.json
